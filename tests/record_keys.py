"""Run a script with a config that records its reads: python record_keys.py script.py arguments.

The keys are written to the file that RECORDED_KEYS names, one a line.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import ClassVar

from detectron2.config import CfgNode

import sed_d2


class RecordingNode(CfgNode):
    """A config node that adds the key of each value that is read to ``keys_read``."""

    keys_read: ClassVar[set[str]] = set()

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if not isinstance(value, CfgNode):
            self.keys_read.add(self.__dict__["path"] + name)
        return value

    def get(self, name, default=None):
        return self[name] if name in self else default  # noqa: SIM401  (that is get itself)


def record(node: CfgNode, path: str = "") -> RecordingNode:
    """Return a copy of a config that records."""
    copy = RecordingNode()
    copy.__dict__["path"] = path
    for name, value in node.items():
        dict.__setitem__(
            copy, name, record(value, f"{path}{name}.") if isinstance(value, CfgNode) else value
        )
    return copy


if __name__ == "__main__":
    get_sed_cfg = sed_d2.get_sed_cfg
    sed_d2.get_sed_cfg = lambda *args: record(get_sed_cfg(*args))
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        Path(os.environ["RECORDED_KEYS"]).write_text("\n".join(sorted(RecordingNode.keys_read)))
