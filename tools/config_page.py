#!/usr/bin/env python
"""Write docs/config.md from the comments above the config keys in the code."""

import argparse
import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode

from sed_d2.config import (
    DETECTRON2_KEYS,
    METHODS,
    RENAMED,
    add_shared_config,
)
from sed_d2.modeling.clip.config import add_clip_config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"

INTRODUCTION = """\
# Config keys

This page is written by `python tools/config_page.py` from the comments in the code.

A config is Detectron2's defaults, the keys below, a YAML file and the `KEY VALUE` pairs of the
command line, in that order; each overrides those before it. In Python it is
`get_sed_cfg(config_file, ["KEY", value, ...])`, and `add_sed_config(cfg)` adds the keys to a config
of Detectron2. `train_net.py` names the keys that a
file or a pair sets and nothing reads in a warning.
"""

ASSIGNMENT = re.compile(r"    cfg\.(?P<key>[\w.]+) = (?P<value>.+)")
COMMENT = re.compile(r"    # (?P<text>.+)")


def documented_keys(add_config: Callable[[CfgNode], None]) -> list[tuple[str, str, str]]:
    """Return the (key, default, comment) of each key that a function of a config room adds.

    Raises:
        ValueError: a key has no comment above it.
    """
    rows: list[tuple[str, str, str]] = []
    comment: list[str] = []
    for line in textwrap.dedent(inspect.getsource(add_config)).splitlines():
        if match := COMMENT.fullmatch(line):
            comment.append(match["text"])
            continue
        match = ASSIGNMENT.fullmatch(line)
        if match and match["value"] != "CN()":
            if not comment:
                raise ValueError(
                    f"config key {match['key']} has no comment: write one above it in "
                    f"{inspect.getsourcefile(add_config)}"
                )
            rows.append((match["key"], match["value"], " ".join(comment)))
        comment = []
    return rows


def table(rows: list[tuple[str, str, str]]) -> str:
    """Return the rows as a Markdown table."""
    cells = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in rows:
        cells.append(f"| `{key}` | `{default}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(cells)


def page() -> str:
    """Return the text of docs/config.md."""
    parts = [INTRODUCTION]
    parts += ["## All methods\n", table(documented_keys(add_shared_config)) + "\n"]
    parts += ["## CLIP\n", table(documented_keys(add_clip_config)) + "\n"]
    for head, add_method_config in METHODS.items():
        parts.append(f"## {head}\n")
        parts.append(f'They are read with `MODEL.SEM_SEG_HEAD.NAME "{head}"`.\n')
        parts.append(table(documented_keys(add_method_config)) + "\n")
    parts.append("## Renamed keys\n")
    parts.append("An old key is an error that names the new one.\n")
    renamed = "\n".join(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())
    parts.append(f"| old | new |\n|---|---|\n{renamed}\n")
    parts.append("## Detectron2's keys\n")
    parts.append(
        "Training and evaluation read these keys of Detectron2, which its\n"
        "[reference](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-"
        "references)\ndescribes. Its other keys have no effect here.\n"
    )
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(DETECTRON2_KEYS):
        section, _, name = key.partition(".")
        groups[section if name else ""].append(f"`{key}`")
    parts += ["\n".join(f"- {', '.join(keys)}" for _, keys in sorted(groups.items())) + "\n"]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
