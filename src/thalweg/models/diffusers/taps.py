"""Taps: the modules of a network that a setting means, by the ending of their names and their block's number.

`audio_to_video_attn` in blocks 1 .. 2 means `transformer_blocks.1.audio_to_video_attn` and
`transformer_blocks.2.audio_to_video_attn`. An ending is of whole words between dots, so `attn1` is not
`audio_attn1`.
"""

from collections.abc import Mapping

from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.names import nearest


def tapped(
    networks: Mapping[str, nn.Module], modules: str, blocks: tuple[int, int] | None, place: str
) -> dict[str, nn.Module]:
    """The modules by name, the network's in front; raises UserError, with the setting's `place`, where there
    are none, or the first or the last block has none.
    """
    named = {
        f"{component}.{name}": module
        for component, network in networks.items()
        for name, module in network.named_modules()
    }
    met = {name: module for name, module in named.items() if f".{name}".endswith(f".{modules}")}
    if not met:
        kinds = " and ".join(dict.fromkeys(type(network).__name__ for network in networks.values()))
        known = {ending for name in named if (ending := _inside_block(name)).count(".") == modules.count(".")}
        raise UserError(
            f"{place}.modules='{modules}': {kinds} has no module of that name"
            f"{nearest(modules, sorted(known - {''}))}"
        )
    if blocks is None:
        return met
    there = sorted({block for name in met if (block := block_of(name)) is not None})
    if not set(blocks) <= set(there):
        where = f"stands in blocks {there[0]} .. {there[-1]}" if there else "stands in no numbered block"
        raise UserError(
            f"{place}.blocks={list(blocks)}: '{modules}' {where}; give the first and the last of those that "
            "are meant"
        )
    first, last = blocks
    return {n: m for n, m in met.items() if (block := block_of(n)) is not None and first <= block <= last}


def block_of(name: str) -> int | None:
    """The number of the block that a module stands in: the first number in its name."""
    return next((int(word) for word in name.split(".") if word.isdecimal()), None)


def _inside_block(name: str) -> str:
    """What follows the number of the block; empty outside of blocks."""
    words = name.split(".")
    number = next((at for at, word in enumerate(words) if word.isdecimal()), len(words))
    return ".".join(words[number + 1 :])
