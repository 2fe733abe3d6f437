import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thalweg.worlds.scenes.checker import Found, attributes, check
from thalweg.worlds.scenes.drawing import draw
from thalweg.worlds.scenes.prompts import TASKS, pretraining_prompts
from thalweg.worlds.scenes.vocabulary import COLORS

PAPER = (0.97, 0.98, 0.97)
INK = {"r": "red", "b": "blue", "k": "black"}

SCENE = """
................
.rrrrr..........
.rrrrr....bb....
.rrrrr....bb....
.rrrrr..bbbbbb..
.rrrrr..bbbbbb..
..........bb....
..........bb....
................
................
................
................
................
................
................
................
"""


def image_of(art: str) -> torch.Tensor:
    """A picture in letters: a dot is paper, a letter a colour."""
    pixels = [[COLORS[INK[c]] if c in INK else PAPER for c in row] for row in art.split()]
    return torch.tensor(pixels).permute(2, 0, 1)


def thing(shape, color=None, size=None, count=1):
    return {"shape": shape, "color": color, "size": size, "count": count}


def asked(*objects, relation=None, background=None):
    return {"objects": list(objects), "relation": relation, "background": background}


RIGHT = [
    asked(thing("square"), thing("cross")),
    asked(thing("cross"), thing("square", "red")),
    asked(thing("square", "red"), thing("cross", "blue")),
    asked(thing("square", "red", "small"), thing("cross", "blue")),
    asked(thing("square"), thing("cross", "blue"), relation="left"),
    asked(thing("cross"), thing("square"), relation="right"),
    asked(thing("cross"), thing("square"), background="white"),
]
WRONG = [
    asked(thing("square")),
    asked(thing("square"), thing("circle")),
    asked(thing("square"), thing("triangle")),
    asked(thing("square", "blue"), thing("cross", "red")),
    asked(thing("square", "red"), thing("cross", "purple")),
    asked(thing("square", size="large"), thing("cross")),
    asked(thing("square"), thing("cross"), relation="right"),
    asked(thing("square"), thing("cross"), relation="above"),
    asked(thing("square"), thing("cross"), background="pink"),
    asked(thing("square", count=2)),
    asked(thing("square", count=2), thing("cross")),
]


def test_a_picture_drawn_by_hand_is_read_as_drawn():
    assert attributes(image_of(SCENE)) == (
        Found("square", "red", (1, 1, 5)),
        Found("cross", "blue", (2, 8, 6)),
    )


@pytest.mark.parametrize("specification", RIGHT)
def test_what_the_picture_shows_is_strictly_right(specification):
    verdict = check(image_of(SCENE), specification)
    assert verdict.strict and verdict.score == 1


@pytest.mark.parametrize("specification", WRONG)
def test_anything_else_is_wrong_with_partial_credit(specification):
    verdict = check(image_of(SCENE), specification)
    assert not verdict.strict and 0 < verdict.score < 1


def test_partial_credit_is_the_mean_of_the_terms():
    # Three squares asked, a square and a cross found: objects 2/3, squares 1/3, coloured 1/3, paper 1.
    verdict = check(image_of(SCENE), asked(thing("square", count=3)))
    assert verdict.score == pytest.approx((2 / 3 + 1 / 3 + 1 / 3 + 1) / 4)


def test_touching_objects_are_one_and_have_no_shape():
    touching = SCENE.replace(".rrrrr..bbbbbb..", ".rrrrrbbbbbbbb..")
    assert [found.shape for found in attributes(image_of(touching))] == [None]


def test_a_square_of_two_colours_has_none():
    halves = image_of(SCENE.replace(".rrrrr", ".rrbbb"))
    assert attributes(halves)[0].color is None


def test_a_shape_of_an_unnamed_colour_keeps_its_shape():
    orange = torch.where(image_of(SCENE) == torch.tensor(COLORS["red"])[:, None, None], 0.0, image_of(SCENE))
    assert attributes(orange)[0] == Found("square", "black", (1, 1, 5))
    grey = torch.where(image_of(SCENE) == torch.tensor(COLORS["red"])[:, None, None], 0.45, image_of(SCENE))
    assert attributes(grey)[0] == Found("square", None, (1, 1, 5))


def test_large_is_seven_pixels_or_more_and_small_six_or_fewer():
    large = image_of("\n".join(["." * 16] * 4 + ["....kkkkkkk....."] * 7 + ["." * 16] * 5))
    assert check(large, asked(thing("square", size="large"))).strict
    assert not check(large, asked(thing("square", size="small"))).strict


def test_a_faint_lattice_on_the_paper_spoils_the_picture():
    lattice = (torch.arange(16)[:, None] + torch.arange(16)) % 2 == 0
    patterned = torch.where(lattice, image_of(SCENE) - 0.14, image_of(SCENE))
    assert not check(patterned.clamp(0, 1), asked(thing("square"), thing("cross"))).strict
    assert attributes(patterned.clamp(0, 1)) == ()


def test_dirt_of_two_pixels_is_forgiven_and_of_three_is_an_object():
    clean = asked(thing("square"), thing("cross"))
    dirty = SCENE.strip().split("\n")
    for count, strict in ((2, True), (3, False)):
        dirty[13] = "." * 4 + "k" * count + "." * (12 - count)
        assert check(image_of("\n".join(dirty)), clean).strict is strict


@pytest.fixture(scope="module")
def scenes():
    """Two hundred pictures of each task with what they were drawn from."""
    rng = np.random.default_rng(0)
    by_task = {task: [] for task in TASKS}
    for prompt in pretraining_prompts():
        by_task[prompt.metadata["task"]].append(prompt.metadata["specification"])
    return {
        task: [
            (torch.tensor(draw(spec, rng)), spec)
            for spec in (specs[i] for i in rng.integers(len(specs), size=200))
        ]
        for task, specs in by_task.items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_drawings_are_judged_right(scenes, task):
    assert sum(check(image, spec).strict for image, spec in scenes[task]) >= 199  # 99.5 %


@pytest.mark.parametrize("task", TASKS)
def test_drawings_survive_the_noise_a_sampler_leaves(scenes, task):
    noise = torch.Generator().manual_seed(0)
    right = [
        check((image + 0.04 * torch.randn(image.shape, generator=noise)).clamp(0, 1), spec).strict
        for image, spec in scenes[task]
    ]
    assert sum(right) >= 198


def blurred(image: torch.Tensor, radius: float) -> torch.Tensor:
    reach = torch.arange(-5, 6, dtype=image.dtype)
    kernel = torch.exp(-(reach**2) / 2 / radius**2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = F.pad(image[None], (5, 5, 5, 5), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, 11, 11), groups=3)[0]


def paper(image: torch.Tensor) -> torch.Tensor:
    return image[:, :1, :1].expand_as(image)


def interleaved(image: torch.Tensor) -> torch.Tensor:
    lines = torch.arange(16)[None, :, None] % 2 == 0
    return torch.where(lines, paper(image), image)


SPOILT = {
    "box blur": lambda image: F.avg_pool2d(F.pad(image[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0],
    "gaussian blur": lambda image: blurred(image, 1.0),
    "tiled": lambda image: F.avg_pool2d(image[None], 2)[0].repeat(1, 2, 2),
    "every other line": interleaved,
    "half faded": lambda image: (image + paper(image)) / 2,
    "inverted": lambda image: 1 - image,
    "darkened": lambda image: image * 0.6,
    "noisy": lambda image: (
        image + 0.25 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_spoilt_drawings_are_rejected(scenes, spoil):
    images = [(spoil(image), spec) for task in TASKS for image, spec in scenes[task][:60]]
    assert sum(check(image, spec).strict for image, spec in images) <= 0.01 * len(images)


@pytest.mark.parametrize("task", TASKS)
def test_half_of_an_object_is_no_object(scenes, task):
    for image, spec in scenes[task][:60]:
        for found in attributes(image):
            cut = image.clone()
            top, left, size = found.box
            cut[:, top : top + size // 2, left : left + size] = image[:, :1, :1, None].squeeze(-1)
            verdict = check(cut, spec)
            # The lower half of a small cross may still be dirt or a stump, but never the cross.
            assert not verdict.strict


@pytest.mark.parametrize(
    "image",
    [
        torch.ones(3, 16, 16),
        torch.zeros(3, 16, 16),
        torch.full((3, 16, 16), 0.5),
        torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
        .repeat_interleave(4, 1)
        .repeat_interleave(4, 2),
        (torch.arange(256).view(1, 16, 16) % 2).float().expand(3, 16, 16),
    ],
    ids=["white", "black", "grey", "noise", "mosaic", "stripes"],
)
def test_an_image_without_objects_is_wrong_for_every_task(scenes, image):
    assert not any(check(image, spec).strict for task in TASKS for _, spec in scenes[task][:20])


def test_a_blank_image_earns_nothing():
    assert check(torch.ones(3, 16, 16), asked(thing("square"))).score == 0


def test_a_right_image_is_wrong_for_a_prompt_that_differs_in_one_word(scenes):
    for image, spec in scenes["attribute"][:60]:
        first, second = spec["objects"]
        swapped = {
            **spec,
            "objects": [{**first, "color": second["color"]}, {**second, "color": first["color"]}],
        }
        assert not check(image, swapped).strict
    for image, spec in scenes["counting"][:60]:
        count = spec["objects"][0]["count"]
        for other in {2, 3, 4} - {count}:
            assert not check(image, {**spec, "objects": [{**spec["objects"][0], "count": other}]}).strict
    for image, spec in scenes["position"][:60]:
        for other in {"left", "right", "above", "below"} - {spec["relation"]}:
            assert not check(image, {**spec, "relation": other}).strict


def test_the_score_is_one_exactly_where_the_verdict_is_strict(scenes):
    pictures = [picture for task in TASKS for picture in scenes[task][:30]]
    for image, _ in pictures[::3]:
        for _, spec in pictures[::7]:
            verdict = check(image, spec)
            assert 0 <= verdict.score <= 1
            assert verdict.strict == (verdict.score == 1)
