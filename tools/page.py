"""Texts that the tools write into the pages of docs/, and the machine that they measured on."""

import platform
import re
from importlib import metadata
from pathlib import Path

import torch


def describe_machine(device: torch.device, threads: int) -> str:
    """Describe the processor or GPU, and the versions of the packages that compute."""
    name = describe_processor()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, beside {name}"
    else:
        name += f", {threads} threads"
    versions = ("torch", "timm", "open_clip_torch", "numpy")
    packages = ", ".join(f"{package} {metadata.version(package)}" for package in versions)
    return f"{name}; Python {platform.python_version()}, {packages}"


def describe_processor() -> str:
    """Describe the processor and the vector instructions that torch uses.

    On Linux this includes the family and model: virtual machines often hide the rest of the name.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":")[::2] for line in lines)
    cpu = {key.strip(): value.strip() for key, value in pairs}
    if not {"model name", "cpu family", "model"} <= cpu.keys():
        return f"{platform.processor() or platform.machine()} ({vectors})"
    return f"{cpu['model name']} (family {cpu['cpu family']}, model {cpu['model']}, {vectors})"


def find_marked(page: Path, mark: str) -> re.Match:
    """Find the text of a page between ``<!-- begin MARK -->`` and ``<!-- end MARK -->``.

    Raises:
        FileNotFoundError: the page does not exist.
        ValueError: the page does not have the marks.
    """
    if not page.is_file():
        raise FileNotFoundError(f"The page {page} does not exist; check the path.")
    begin, end = (f"<!-- {word} {mark} -->" for word in ("begin", "end"))
    pattern = rf"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})"
    found = re.search(pattern, page.read_text(encoding="utf-8"), re.DOTALL)
    if not found:
        raise ValueError(f"The page {page} has no lines '{begin}' and '{end}'; add them.")
    return found


def update_page(page: Path, mark: str, text: str) -> None:
    """Replace the text that :func:`find_marked` finds; errors as there."""
    found = find_marked(page, mark)
    before, after = found.string[: found.start()], found.string[found.end() :]
    page.write_text(f"{before}\n{text}\n\n{after}", encoding="utf-8")
