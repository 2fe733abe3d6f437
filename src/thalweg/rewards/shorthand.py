"""Short ways to name a reward in a recipe."""

from collections.abc import Mapping
from typing import Any

from thalweg.core.names import nearest
from thalweg.worlds import WORLDS


def from_shorthand(value: Any, kinds: Mapping[str, type]) -> Any:
    """A world's name, a kind, `module:function` or a function stands for the reward it names."""
    if callable(value) and not isinstance(value, tuple(kinds.values())):
        return {"kind": "function", "function": value}
    if not isinstance(value, str):
        return value
    if value in WORLDS and "world" in kinds:
        return {"kind": "world", "world": value}
    if ":" in value:
        return {"kind": "function", "function": value}
    if value in kinds:
        return {"kind": value}
    worlds = WORLDS if "world" in kinds else {}
    raise ValueError(f"no reward is called '{value}'{nearest(value, [*worlds, *kinds])}")
