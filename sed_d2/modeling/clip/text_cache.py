"""Text embeddings on disk, one file per class, shared by processes."""

import hashlib
import logging
import os
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from open_clip import CLIP
from torch import Tensor

from ..versions import tensor_versions
from .open_clip_adapter import text_settings, text_tensors

logger = logging.getLogger(__name__)

#: Part of every key. Raise it when the embedding of the same names, templates and weights changes,
#: or the format of the files does.
VERSION = 1

#: Suffix of the files.
SUFFIX = ".sedtext"

#: Suffix of a file that is being written.
_TEMPORARY_SUFFIX = f"{SUFFIX}.tmp"

#: Bytes of the checksum at the start of a file.
_CHECKSUM_BYTES = 4

#: Seconds after which an unfinished file was left by a killed process; writing takes milliseconds.
_ABANDONED_AFTER = 3600

#: Bytes that a thread hashes at a time.
_CHUNK_BYTES = 1 << 24


def build_text_cache(folder: str, gigabytes: float) -> "TextCache | None":
    """Build the cache of ``MODEL.CLIP.TEXT_CACHE`` and ``TEXT_CACHE_GB``.

    Args:
        folder: the folder of the files; "" is ``sed_d2/text`` in torch's hub folder, which the
            environment variable ``TORCH_HOME`` moves.
        gigabytes: size limit of all files together, in 10^9 bytes; 0 is no cache.

    Raises:
        ValueError: ``gigabytes`` is negative.
    """
    if gigabytes < 0:
        raise ValueError(
            f"MODEL.CLIP.TEXT_CACHE_GB {gigabytes} is negative: give a size, or 0 for no cache"
        )
    if not gigabytes:
        return None
    path = Path(folder).expanduser() if folder else Path(torch.hub.get_dir(), "sed_d2", "text")
    return TextCache(path, int(gigabytes * 10**9))


class TextCache:
    """Folder with a file for each embedded class; many processes may use it at once.

    A file holds a checksum and the embedding's bytes. Problems of the folder are no errors: a class
    whose file cannot be read is embedded again, and one whose file cannot be written is embedded at
    every start.

    Args:
        folder: created at the first write.
        max_bytes: size limit of all files together; the least recently used ones are deleted.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes
        self._writable = True

    def read(self, key: str, out: Tensor) -> bool:
        """Fill a tensor with the embedding stored under ``key``.

        Args:
            key: see :class:`TextKeys`.
            out: (P, C) contiguous, on the CPU; its content is undefined after False.

        Returns:
            Whether there is an intact entry of this size.
        """
        path, data = self._path(key), _bytes(out)
        try:
            with open(path, "rb") as file:
                checksum = file.read(_CHECKSUM_BYTES)
                # Reading one more byte detects a longer file.
                sound = file.readinto(data) == len(data) and not file.read(1)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            logger.info(
                "The text embedding %s cannot be read (%s): it is computed again.", path, error
            )
            return False
        if not sound or checksum != _checksum(key, data):
            logger.info("The text embedding %s is damaged: it is computed again.", path)
            return False
        # Record the last use, since many disks are mounted without access times. A read-only folder
        # has none, but nothing is evicted from it either.
        with suppress(OSError):
            os.utime(path)
        return True

    def write(self, embeddings: Mapping[str, Tensor]) -> None:
        """Store (P, C) contiguous CPU tensors by key, then evict down to ``max_bytes``."""
        if not self._writable:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for key, embedding in embeddings.items():
                self._write(key, _bytes(embedding))
            self._evict()
        except OSError as error:
            self._writable = False
            logger.warning(
                "Text embeddings cannot be stored in %s (%s), so every start computes them: name "
                "another folder in MODEL.CLIP.TEXT_CACHE, or set MODEL.CLIP.TEXT_CACHE_GB to 0.",
                self.folder,
                error,
            )

    def _write(self, key: str, data: memoryview) -> None:
        # Not data.files.write_whole, whose temporary name is fixed: several processes may write one
        # entry at once.
        temporary = self.folder / f".{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}"
        try:
            with open(temporary, "xb") as file:
                file.write(_checksum(key, data))
                file.write(data)
            os.replace(temporary, self._path(key))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _evict(self) -> None:
        """Delete the least recently used entries, and files that killed processes left."""
        entries = []
        with os.scandir(self.folder) as files:
            for file in files:
                # Another process may delete the file at any time.
                with suppress(FileNotFoundError):
                    if file.name.endswith(SUFFIX):
                        status = file.stat()
                        entries.append((status.st_mtime_ns, status.st_size, file.path))
                    elif file.name.endswith(_TEMPORARY_SUFFIX) and (
                        file.stat().st_mtime < time.time() - _ABANDONED_AFTER
                    ):
                        os.unlink(file.path)
        surplus = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if surplus <= 0:
                break
            Path(path).unlink(missing_ok=True)
            surplus -= size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"


class TextKeys:
    """Keys of embeddings, made of everything that they depend on.

    Args:
        clip: the open_clip model that holds the text tower.
        tokenizer: texts -> (N, context length) token ids.
    """

    def __init__(self, clip: CLIP, tokenizer: Callable[[Sequence[str]], Tensor]):
        self.clip = clip
        self.tokenizer = tokenizer
        self._tower: tuple[tuple | None, bytes] = (None, b"")  # state and digest, set together

    def __call__(
        self, classes: Sequence[Sequence[str]], templates: Sequence[Callable[[str], str]]
    ) -> list[str]:
        """Return a key of 64 hexadecimal digits for each class.

        It depends on the present weights of the text tower, its activations, heads and way of
        pooling, the precision of torch's matrix products, the templates and the class's synonyms
        in their order, and, for both texts, on the tokenizer's answer.

        Args:
            classes: the synonyms of each class.
            templates: name -> prompt.
        """
        prompts = [template("{}") for template in templates]
        shared = hashlib.sha256(
            repr((VERSION, sys.byteorder, _matmul_precision(), prompts)).encode()
        )
        shared.update(self.tower_digest())
        shared.update(_bytes(self.tokenizer(prompts)))
        names = list(dict.fromkeys(name for synonyms in classes for name in synonyms))
        tokens = dict(zip(names, self.tokenizer(names), strict=True))
        keys = []
        for synonyms in classes:
            digest = shared.copy()
            digest.update(repr(tuple(synonyms)).encode())
            for name in synonyms:
                digest.update(_bytes(tokens[name]))
            keys.append(digest.hexdigest())
        return keys

    def tower_state(self) -> tuple:
        """Return what changes whenever the weights of the text tower change or move.

        A change behind autograd's back, through ``parameter.data``, goes unseen.
        """
        return tensor_versions(text_tensors(self.clip).values())

    def tower_digest(self) -> bytes:
        """Return a digest of the text tower, computed again when :meth:`tower_state` changes."""
        state = self.tower_state()
        known_state, digest = self._tower
        if state != known_state:
            digest = _digest_tower(self.clip)
            self._tower = (state, digest)
        return digest


def _digest_tower(clip: CLIP) -> bytes:
    digest = hashlib.sha256(text_settings(clip).encode())
    # Chunks by threads, since hashing releases Python's lock: the base model's tower has 365 MB.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, tensor in text_tensors(clip).items():
            digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
            data = _bytes(tensor.detach().cpu().contiguous())
            chunks = [data[i : i + _CHUNK_BYTES] for i in range(0, len(data), _CHUNK_BYTES)]
            for chunk_digest in pool.map(hashlib.sha256, chunks):
                digest.update(chunk_digest.digest())
    return digest.digest()


def _matmul_precision() -> str:
    """Return the precision of float32 products, so that TensorFloat-32 has separate entries.

    Torch raises an error if its newer settings differ between backends.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "set by backend"


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _checksum(key: str, data: memoryview) -> bytes:
    # With the key, so that a renamed file does not pass.
    return zlib.crc32(data, zlib.crc32(key.encode())).to_bytes(_CHECKSUM_BYTES, "little")
