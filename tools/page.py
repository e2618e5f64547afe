"""What the tools write into the pages of docs/."""

import platform
import re
from importlib import metadata
from pathlib import Path

import torch


def describe_machine(device: torch.device, threads: int) -> str:
    """The processor or GPU, and the versions of what computes."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, beside {name}"
    else:
        name += f", {threads} threads"
    versions = ("torch", "timm", "open_clip_torch", "numpy")
    packages = ", ".join(f"{package} {metadata.version(package)}" for package in versions)
    return f"{name}; Python {platform.python_version()}, {packages}"


def update_page(page: Path, mark: str, text: str) -> None:
    """Replace what a page has between ``<!-- begin MARK -->`` and ``<!-- end MARK -->``.

    Raises:
        FileNotFoundError: there is no such page.
        ValueError: the page has no such marks.
    """
    if not page.is_file():
        raise FileNotFoundError(f"The page {page} does not exist; check the path.")
    begin, end = (f"<!-- {word} {mark} -->" for word in ("begin", "end"))
    content = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    if not pattern.search(content):
        raise ValueError(f"The page {page} has no lines '{begin}' and '{end}'; add them.")
    page.write_text(pattern.sub(lambda _: f"\n{text}\n\n", content, count=1), encoding="utf-8")
