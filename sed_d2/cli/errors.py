"""Errors that the user can fix, printed as one sentence instead of a traceback."""

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from yaml import YAMLError

logger = logging.getLogger(__name__)

#: Modules whose errors are about a config: unknown keys, data sets or models, and invalid YAML.
CONFIG_MODULES = (
    "detectron2.config.config",
    "detectron2.data.catalog",
    "fvcore.common.config",
    "fvcore.common.registry",
    "yacs.config",
    "yaml.",
)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Exit with ``error: <sentence>`` on stderr and code 1; a context manager and a decorator.

    It handles the errors that a user can fix: ValueError, OSError with its subclasses, errors in a
    config, and each of these from a worker of a data loader. Any other exception is a bug and keeps
    its traceback. At the logging level DEBUG the traceback of a handled error is logged.
    """
    try:
        yield
    except Exception as error:
        if not is_users(error):
            raise
        logger.debug("The traceback of the error:", exc_info=True)
        sys.exit(f"error: {sentence(error)}")


def is_users(error: Exception) -> bool:
    """Return whether the user can fix an error; otherwise it is a bug."""
    return isinstance(error, ValueError | OSError) or _is_about_config(error)


def sentence(error: Exception) -> str:
    """Return the message of an error on one line, without the traceback of a worker process."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    worker = re.match(r"Caught (\w+) in DataLoader worker process", message)
    if worker:
        # The traceback ends with the exception's name, after its module unless it is a builtin.
        start = re.compile(rf"^(?:[\w.]+\.)?{worker[1]}: ", re.MULTILINE)
        message = start.split(message)[-1]
    message = " ".join(message.split()) or type(error).__name__
    if _is_about_config(error):
        message = f"{message.rstrip('.!')}; check the config file and the KEY VALUE pairs"
    return message


def _is_about_config(error: Exception) -> bool:
    if not isinstance(error, AssertionError | KeyError | ValueError | YAMLError):
        return False
    modules = [f.f_globals.get("__name__", "") for f, _ in traceback.walk_tb(error.__traceback__)]
    return bool(modules) and modules[-1].startswith(CONFIG_MODULES)
