"""Which blocks of a network a setting means."""

from typing import Annotated

from pydantic import AfterValidator


def _in_order(blocks: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= blocks[0] <= blocks[1]:
        raise ValueError(f"{list(blocks)}: first and last block, counted from 0; give the smaller one first")
    return blocks


Blocks = Annotated[tuple[int, int], AfterValidator(_in_order)]
"""First and last block, counted from 0."""
