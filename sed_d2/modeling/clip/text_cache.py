"""Text embeddings on disk: classes that were embedded once are read, not embedded again."""

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
from torch import Tensor, nn

from ..versions import tensor_versions
from .open_clip_adapter import text_settings, text_tensors

logger = logging.getLogger(__name__)

#: Changes when the same names, templates and weights are to give another embedding, or when the
#: form of the files changes.
VERSION = 1
SUFFIX = ".sedtext"
_TEMPORARY_SUFFIX = f"{SUFFIX}.tmp"
_CHECKSUM_BYTES = 4
# Seconds after which an unfinished file belongs to a killed process; writing takes milliseconds.
_ABANDONED_AFTER = 3600
_CHUNK_BYTES = 1 << 24


def build_text_cache(folder: str, gigabytes: float) -> "TextCache | None":
    """The cache that ``MODEL.CLIP.TEXT_CACHE`` and ``TEXT_CACHE_GB`` ask for.

    Args:
        folder: where the files lie; "" is ``sed_d2/text`` in torch's hub folder, which the
            environment variable ``TORCH_HOME`` moves.
        gigabytes: what all files may take together, in 10^9 bytes; 0 is no cache.

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
    """A folder with a file for each embedded class; many processes may use it at once.

    A file is a checksum and the embedding's bytes. Nothing about the folder is an error: what
    cannot be read is embedded again, and what cannot be written is embedded at every start.

    Args:
        folder: made when something is first written.
        max_bytes: what all files may take together; those not used for longest go first.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes
        self._writable = True

    def read(self, key: str, out: Tensor) -> bool:
        """Fill a tensor with the embedding kept under ``key``.

        Args:
            key: see :class:`TextKeys`.
            out: (P, C) contiguous, on the CPU; its content is undefined after False.

        Returns:
            Whether there is an entry of this size and it is sound.
        """
        path, data = self._path(key), _bytes(out)
        try:
            with open(path, "rb") as file:
                checksum = file.read(_CHECKSUM_BYTES)
                # One byte more than there should be shows a longer file.
                sound = file.readinto(data) == len(data) and not file.read(1)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            logger.info("The text embedding %s cannot be read (%s): it is made again.", path, error)
            return False
        if not sound or checksum != _checksum(key, data):
            logger.info("The text embedding %s is damaged: it is made again.", path)
            return False
        # The time of the last use: the system's own is not kept on many disks. In a folder that
        # can only be read there is none, and nothing is evicted either.
        with suppress(OSError):
            os.utime(path)
        return True

    def write(self, embeddings: Mapping[str, Tensor]) -> None:
        """Keep (P, C) contiguous CPU tensors under their keys, then evict down to ``max_bytes``."""
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
                "Text embeddings cannot be kept in %s (%s), so they are made at every start: name "
                "another folder in MODEL.CLIP.TEXT_CACHE, or set MODEL.CLIP.TEXT_CACHE_GB to 0.",
                self.folder,
                error,
            )

    def _write(self, key: str, data: memoryview) -> None:
        # Like data.files.write_whole, but with a temporary name of this call's own: there the name
        # is fixed, and here several processes may write one entry at once.
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
        """Delete the entries not used for longest, and what killed processes left."""
        entries = []
        with os.scandir(self.folder) as files:
            for file in files:
                # Another process may delete the file at any time.
                with suppress(FileNotFoundError):
                    if file.name.endswith(SUFFIX):
                        status = file.stat()
                        entries.append((status.st_mtime_ns, status.st_size, file.path))
                    elif file.name.endswith(_TEMPORARY_SUFFIX):
                        if file.stat().st_mtime < time.time() - _ABANDONED_AFTER:
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
    """Names the embeddings of classes by everything that they are made from.

    Args:
        clip: the open_clip model that holds the text tower.
        tokenizer: texts -> (N, context length) token ids.
    """

    def __init__(self, clip: nn.Module, tokenizer):
        self.clip = clip
        self.tokenizer = tokenizer
        self._tower: tuple[tuple | None, bytes] = (None, b"")  # state and digest, set together

    def __call__(
        self, classes: Sequence[Sequence[str]], templates: Sequence[Callable[[str], str]]
    ) -> list[str]:
        """A key for each class, of 64 hexadecimal digits.

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


def _digest_tower(clip: nn.Module) -> bytes:
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
    """How exact float32 products are; TensorFloat-32 is not to be kept for those who want float32.

    Torch raises where its newer settings were used and no answer holds for every backend.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "set by backend"


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _checksum(key: str, data: memoryview) -> bytes:
    # With the key, so that a file under another's name does not pass.
    return zlib.crc32(data, zlib.crc32(key.encode())).to_bytes(_CHECKSUM_BYTES, "little")
