"""What the programs share: errors that the user can mend as one sentence, and their memory."""

import ctypes
import logging
import os
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

# Options of glibc's mallopt: the number of blocks with a mapping of their own, the free bytes at
# the top of the heap that are given back (-1: never), the bytes by which the heap grows.
M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -1, -2


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


def keep_freed_memory(device: str) -> None:
    """On the CPU, let this process keep the memory that tensors free, for the next ones.

    By default glibc gives large blocks back, and the system clears each of their pages anew when
    they are allocated again, at every step: nearly half of the time of a training on the CPU. The
    price is that the process stays as large as it once was, and somewhat larger where sizes vary.
    It is for programs; a library leaves the allocator to its user. Elsewhere it does nothing.

    Args:
        device: where the model is, as in ``MODEL.DEVICE``.
    """
    if os.name != "posix" or not device.startswith("cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 26)):
            mallopt(option, value)
