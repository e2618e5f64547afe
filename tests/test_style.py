"""The rules of style that ruff cannot check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("sed_d2", "datasets", "demo", "tools")
SOURCES = [ROOT / "setup.py", ROOT / "train_net.py"]
SOURCES += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def undocumented_way(source: str) -> list[int]:
    """Return the lines of constants that a plain comment or a string documents."""
    lines = source.splitlines()
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef):
            continue
        for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                continue
            string = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            constant = isinstance(target, ast.Name) and target.id.isupper()
            above = lines[statement.lineno - 2].strip() if statement.lineno > 1 else ""
            comment = above.startswith("#") and not above.startswith("#:")
            if string or (constant and comment):
                wrong.append(statement.lineno)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_constant_is_documented_by_a_marked_comment_above_it(path):
    assert undocumented_way(path.read_text(encoding="utf-8")) == []


def test_the_check_finds_other_ways():
    source = '#: Right.\nA = 1\n# Plain.\nB: int = 2\nclass C:\n    d: int = 3\n    """String."""\n'
    assert undocumented_way(source) == [4, 6]
