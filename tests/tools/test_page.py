"""What the tools write into the pages of docs/."""

from pathlib import Path

import pytest
import torch

from tools.page import describe_processor, update_page


def test_a_page_needs_its_marks(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(FileNotFoundError, match="page.md does not exist"):
        update_page(page, "cpu", "text")
    page.write_text("<!-- begin gpu -->\n<!-- end gpu -->\n")
    with pytest.raises(ValueError, match="has no lines '<!-- begin cpu -->'"):
        update_page(page, "cpu", "text")
    update_page(page, "gpu", "a \\1 b")
    update_page(page, "gpu", "new")
    assert page.read_text() == "<!-- begin gpu -->\n\nnew\n\n<!-- end gpu -->\n"


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["model\t\t: 17", "model name\t: AMD EPYC", "cpu family\t: 25"], "AMD EPYC (family 25, "),
        (["Processor : 0"], ""),
    ],
)
def test_the_processor_has_a_name(lines, name, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "\n".join(lines))
    vectors = torch.backends.cpu.get_cpu_capability()
    described = describe_processor()
    assert described.startswith(name) and described.endswith(f"{vectors})")
    assert ("model 17" in described) == bool(name)
