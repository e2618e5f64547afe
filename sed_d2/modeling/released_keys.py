"""Key names of released checkpoints."""

from collections.abc import Mapping, MutableMapping
from typing import Any


def rename_keys(state_dict: MutableMapping[str, Any], prefixes: Mapping[str, str]) -> None:
    """Replace the prefixes of a state dict's keys, in place; leave all other keys alone.

    Args:
        state_dict: key -> tensor.
        prefixes: released prefix -> ours; of several that match, the longest one counts.
    """
    by_length = sorted(prefixes, key=len, reverse=True)
    for key in list(state_dict):
        for released in by_length:
            if key.startswith(released):
                state_dict[prefixes[released] + key[len(released) :]] = state_dict.pop(key)
                break
