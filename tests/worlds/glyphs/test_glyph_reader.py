from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thalweg.worlds.glyphs.drawing import draw
from thalweg.worlds.glyphs.prompts import pretraining_prompts
from thalweg.worlds.glyphs.reader import Reading, check, edit_distance, read

LAKE = """
....................
.#....#..#.#.###....
.#...#.#.##..#......
.#...###.#...###....
.#...#.#.##..#......
.###.#.#.#.#.###....
....................
....................
"""


def image_of(art: str) -> torch.Tensor:
    """A picture in letters: a hash is red ink."""
    pixels = [[(0.8, 0.12, 0.12) if c == "#" else (0.97, 0.95, 0.92) for c in row] for row in art.split()]
    return torch.tensor(pixels).permute(2, 0, 1)


def test_a_word_written_by_hand_is_read():
    assert read(image_of(LAKE)) == Reading("LAKE", "red")


def test_a_letter_that_is_none_reads_as_a_question_mark():
    filled = LAKE.replace("..#.#", ".###.").replace(".##..", ".###.").replace(".#...###", ".######.", 1)
    assert "?" in read(image_of(filled)).text


def test_ink_outside_the_letters_reads_as_a_question_mark():
    stained = LAKE.strip().split("\n")
    stained[7] = "..####.............."
    assert read(image_of("\n".join(stained))).text == "LAKE?"


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("KITTEN", "SITTING", 3), ("", "ACE", 3), ("ACE", "ACE", 0), ("CAKE", "LAKE", 1), ("LAKE", "AKE", 1)],
)
def test_the_edit_distance_counts_letters_to_change(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("text", "score"),
    [("LAKE", 1.0), ("CAKE", 0.75), ("LAKES", 0.8), ("TAXED", 0.4), ("OO", 0.0), ("LA", 0.0)],
)
def test_partial_credit_falls_with_the_edit_distance(text, score):
    verdict = check(image_of(LAKE), text)
    assert verdict.score == pytest.approx(score) and verdict.strict == (text == "LAKE")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    prompts = pretraining_prompts()
    texts = [prompts[i].text for i in rng.integers(len(prompts), size=400)]
    return [(torch.tensor(draw(text, rng)), text) for text in texts]


def test_drawings_are_read_right(pictures):
    assert sum(check(image, text).strict for image, text in pictures) >= 398  # 99.5 %


def test_drawings_survive_the_noise_a_sampler_leaves(pictures):
    noise = torch.Generator().manual_seed(0)
    right = [
        check((image + 0.05 * torch.randn(image.shape, generator=noise)).clamp(0, 1), text).strict
        for image, text in pictures
    ]
    assert sum(right) >= 396


def blurred(image: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(image[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]


def paper(image: torch.Tensor) -> torch.Tensor:
    return image[:, :1, :1].expand_as(image)


SPOILT = {
    "blurred": blurred,
    "tiled": lambda image: F.avg_pool2d(image[None], 2)[0].repeat(1, 2, 2),
    "left half twice": lambda image: image[:, :, :10].repeat(1, 1, 2),
    "upper half": lambda image: torch.cat([image[:, :4], paper(image)[:, 4:]], 1),
    "left half": lambda image: torch.cat([image[:, :, :7], paper(image)[:, :, 7:]], 2),
    "every other line": lambda image: torch.where(torch.arange(8)[:, None] % 2 == 0, paper(image), image),
    "inverted": lambda image: 1 - image,
    "blank": paper,
    "noise": lambda image: torch.rand(image.shape, generator=torch.Generator().manual_seed(int(image.sum()))),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_spoilt_drawings_are_rejected(pictures, spoil):
    # The left half of a picture may still hold a whole string of two letters.
    long = [(image, text) for image, text in pictures if len(text) > 2]
    assert not any(check(spoil(image), text).strict for image, text in long)


def test_a_right_image_is_wrong_for_any_other_string(pictures):
    for (image, text), (_, other) in pairwise(pictures):
        assert check(image, other).strict == (text == other)
