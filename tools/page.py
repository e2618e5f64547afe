"""What the tools write into the pages of docs/."""

import platform
import re
from importlib import metadata
from pathlib import Path

import torch


def describe_machine(device: torch.device, threads: int) -> str:
    """The processor or GPU, and the versions of what computes."""
    name = describe_processor()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, beside {name}"
    else:
        name += f", {threads} threads"
    versions = ("torch", "timm", "open_clip_torch", "numpy")
    packages = ", ".join(f"{package} {metadata.version(package)}" for package in versions)
    return f"{name}; Python {platform.python_version()}, {packages}"


def describe_processor() -> str:
    """The processor's name and the vector instructions that torch uses.

    On Linux the family and model too, since virtual machines often hide all but the maker's name.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":")[::2] for line in lines)
    known = {key.strip(): value.strip() for key, value in pairs}
    if not {"model name", "cpu family", "model"} <= known.keys():
        return f"{platform.processor() or platform.machine()} ({vectors})"
    return (
        f"{known['model name']} (family {known['cpu family']}, model {known['model']}, {vectors})"
    )


def find_marked(page: Path, mark: str) -> re.Match:
    """What a page has between ``<!-- begin MARK -->`` and ``<!-- end MARK -->``.

    Raises:
        FileNotFoundError: there is no such page.
        ValueError: the page has no such marks.
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
    """Replace what :func:`find_marked` finds; it raises the same errors."""
    found = find_marked(page, mark)
    before, after = found.string[: found.start()], found.string[found.end() :]
    page.write_text(f"{before}\n{text}\n\n{after}", encoding="utf-8")
