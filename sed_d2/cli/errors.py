"""What the programs share: errors that the user can mend as one sentence."""

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from yaml import YAMLError

logger = logging.getLogger(__name__)

#: Modules whose errors tell of a wrong config: unknown keys, data sets, models, broken YAML.
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
    """End the command with ``error: <sentence>`` on stderr and exit code 1; also a decorator.

    It does so for what a user can mend: ValueError, OSError (FileNotFoundError among them), what
    is wrong in a config, and each of these from a worker of a data loader. Any other exception is
    a bug and keeps its traceback. With logging at DEBUG level these show theirs as well.
    """
    try:
        yield
    except Exception as error:
        if not is_users(error):
            raise
        logger.debug("The traceback of the error:", exc_info=True)
        sys.exit(f"error: {sentence(error)}")


def is_users(error: Exception) -> bool:
    """Whether the user, not the program, is to mend an error."""
    return isinstance(error, ValueError | OSError) or _is_about_config(error)


def sentence(error: Exception) -> str:
    """The message of an error on one line; of a data loader's worker without its traceback."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    worker = re.match(r"Caught (\w+) in DataLoader worker process", message)
    if worker:
        # The traceback ends with the name of the exception, with its module if that is no builtin.
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
