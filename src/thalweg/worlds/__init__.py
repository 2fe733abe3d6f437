"""Miniature tasks with exact rewards and small shipped weights: the embedded default and the test bed."""

from thalweg.core.errors import UserError
from thalweg.core.names import nearest
from thalweg.worlds.glyphs.world import GLYPHS
from thalweg.worlds.scenes.world import SCENES
from thalweg.worlds.world import Judgement, World

WORLDS: dict[str, World] = {world.name: world for world in (SCENES, GLYPHS)}


def find_world(name: str) -> World:
    """The world of that name."""
    if name not in WORLDS:
        raise UserError(f"world '{name}': there is none of that name{nearest(name, WORLDS)}")
    return WORLDS[name]


__all__ = ["WORLDS", "Judgement", "World", "find_world"]
