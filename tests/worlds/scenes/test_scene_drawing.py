from itertools import combinations
from math import pi

import numpy as np
import pytest
from numpy.testing import assert_allclose

from thalweg.worlds.scenes.drawing import boxes, draw, sprite
from thalweg.worlds.scenes.prompts import held_out_prompts
from thalweg.worlds.scenes.vocabulary import COLORS, SHAPES, TINTS

ART = {
    ("triangle", 5): ["..#..", ".###.", ".###.", "#####", "#####"],
    ("triangle", 6): ["..##..", "..##..", ".####.", ".####.", "######", "######"],
    ("cross", 5): ["..#..", "..#..", "#####", "..#..", "..#.."],
    ("cross", 6): ["..##..", "..##..", "######", "######", "..##..", "..##.."],
    ("square", 5): ["#####"] * 5,
}


@pytest.mark.parametrize(("shape", "size"), ART)
def test_straight_shapes_are_drawn_to_the_pixel(shape, size):
    assert_allclose(sprite(shape, size), [[c == "#" for c in row] for row in ART[shape, size]])


@pytest.mark.parametrize("size", range(5, 9))
def test_a_circle_covers_its_area(size):
    assert_allclose(sprite("circle", size).sum(), pi * size**2 / 4, rtol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", range(5, 9))
def test_a_shape_reaches_all_four_sides_of_its_box(shape, size):
    cover = sprite(shape, size)
    assert all(side.max() >= 0.5 for side in (cover[0], cover[-1], cover[:, 0], cover[:, -1]))


@pytest.mark.parametrize("sizes", [[8], [7, 6], [6, 6, 6], [5, 5, 5, 5]])
def test_a_pixel_of_background_lies_between_objects_and_around_them(sizes):
    rng = np.random.default_rng(0)
    thrown = [placed for _ in range(300) if (placed := boxes(sizes, None, rng))]
    assert thrown
    for placed in thrown:
        occupied = np.zeros((16, 16), dtype=int)
        for top, left, size in placed:
            assert min(top, left) >= 1 and max(top, left) + size <= 15
            occupied[top : top + size, left : left + size] += 1
        assert occupied.max() == 1
        for (t, u, s), (top, left, size) in combinations(placed, 2):
            grown = np.zeros((16, 16), dtype=bool)
            grown[t - 1 : t + s + 1, u - 1 : u + s + 1] = True
            assert not grown[top : top + size, left : left + size].any()


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left", 1, 1), ("right", 1, -1), ("above", 0, 1), ("below", 0, -1)]
)
def test_a_relation_is_the_larger_offset_by_two_pixels(relation, axis, sign):
    rng = np.random.default_rng(0)
    thrown = [placed for _ in range(300) if (placed := boxes([5, 6], relation, rng))]
    assert thrown
    for first, second in thrown:
        offset = [second[k] + 3.0 - first[k] - 2.5 for k in (0, 1)]
        assert sign * offset[axis] >= abs(offset[1 - axis]) + 2


def test_the_border_is_near_a_tint_and_pixels_stay_in_range():
    rng = np.random.default_rng(0)
    for prompt in held_out_prompts()[::10]:
        spec = prompt.metadata["specification"]
        image = draw(spec, rng)
        assert image.min() >= 0 and image.max() <= 1
        ring = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
        assert_allclose(ring, np.broadcast_to(ring[:, :1], ring.shape))
        tints = [TINTS[spec["background"]]] if spec["background"] else list(TINTS.values())
        assert min(np.abs(ring[:, 0] - tint).max() for tint in tints) < 0.05


def test_a_colour_that_is_left_free_takes_every_value():
    rng = np.random.default_rng(0)
    spec = next(
        p.metadata["specification"]
        for p in held_out_prompts()
        if p.metadata["task"] == "single" and "square" in p.text
    )
    seen = set()
    for _ in range(100):
        image = draw(spec, rng)
        center = image[:, np.abs(image - image[:, :1, :1]).sum(0) > 0.3].mean(1)
        seen.add(min(COLORS, key=lambda name: np.abs(center - COLORS[name]).sum()))
    assert seen == set(COLORS)
