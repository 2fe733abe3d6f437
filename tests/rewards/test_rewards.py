import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rewards import Reward, require_finite, score, total, weights_of
from thalweg.rewards.function import FunctionReward
from thalweg.rewards.pixels import Brightness, JPEGSize
from thalweg.rewards.world import WorldReward
from thalweg.worlds import find_world
from thalweg.worlds.scenes.drawing import draw

IMAGES = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.25), torch.ones(3, 8, 8)])
PROMPTS = [Prompt("one"), Prompt("two", {"number": 2}), Prompt("three")]
reward_of = TypeAdapter(Reward).validate_python


def length(images, prompts):
    return [len(prompt.text) for prompt in prompts]


def test_a_users_function_gets_images_and_prompts_and_gives_numbers():
    def judge(images, prompts):
        assert images.shape == (3, 3, 8, 8) and prompts[1].metadata["number"] == 2
        return images.mean((1, 2, 3)) + torch.tensor([1.0, 2.0, 3.0])

    reward = FunctionReward(function=judge)
    assert reward.name == "judge"
    assert_close(reward.score(IMAGES, PROMPTS), torch.tensor([1.0, 2.25, 4.0]))


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3]), torch.tensor([1, 2, 3]), np.float64([1, 2, 3])],
)
def test_numbers_may_come_as_list_tuple_array_or_tensor(values):
    got = FunctionReward(function=lambda images, prompts: values).score(IMAGES, PROMPTS)
    assert got.dtype == torch.float32 and got.tolist() == [1, 2, 3]


def test_scores_with_a_gradient_lose_it():
    def judge(images, prompts):
        return torch.ones(3, requires_grad=True) * 2

    assert not FunctionReward(function=judge).score(IMAGES, PROMPTS).requires_grad


def broken(images, prompts):
    raise KeyError("colour")


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (broken, "reward 'broken' raised KeyError: 'colour'; mend the function and resume the run"),
        (lambda i, p: [1.0, 2.0], r"returned shape \(2,\) for 3 images; return one number an image"),
        (lambda i, p: torch.ones(3, 1), r"returned shape \(3, 1\) for 3 images"),
        (lambda i, p: 1.0, r"returned shape \(\) for 3 images"),
        (lambda i, p: None, "returned NoneType, which does not read as numbers"),
        (lambda i, p: ["a", "b", "c"], "returned list, which does not read as numbers"),
        (lambda i, p: {"a": 1}, "returned dict, which does not read as numbers"),
    ],
)
def test_a_function_that_fails_is_named_in_one_line(function, complaint):
    with pytest.raises(UserError, match=complaint) as refused:
        FunctionReward(function=function).score(IMAGES, PROMPTS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_with_the_first_prompt(bad):
    with pytest.raises(UserError, match=r"returned (nan|inf) for 2 of 3 .*'two'") as refused:
        require_finite({"fine": torch.ones(3), "r": torch.tensor([1.0, bad, bad])}, PROMPTS)
    assert "\n" not in str(refused.value)
    require_finite({"fine": torch.ones(3)}, PROMPTS)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("scenes", WorldReward(world="scenes")),
        ("brightness", Brightness()),
        ("jpeg_size", JPEGSize()),
        ({"kind": "jpeg_size", "quality": 50, "weight": -1.0}, JPEGSize(quality=50, weight=-1.0)),
        ({"kind": "world", "world": "scenes", "strict": True}, WorldReward(strict=True)),
        ("math:hypot", FunctionReward(function="math:hypot")),
        (length, FunctionReward(function=length)),
    ],
)
def test_a_reward_may_be_given_in_short(short, full):
    assert reward_of(short) == full


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("scens", "no reward is called 'scens'; did you mean 'scenes'"),
        ("no.such.module:function", "no.such.module"),
        ("math:hypott", "hypott"),
        ({"kind": "brightness", "quality": 3}, "quality"),
    ],
)
def test_an_unknown_reward_is_refused(wrong, complaint):
    with pytest.raises(ValidationError, match=complaint):
        reward_of(wrong)


def test_rewards_are_scored_by_name_and_added_by_weight():
    rewards = [Brightness(weight=2.0), FunctionReward(function=length, weight=-1.0)]
    scores = score(rewards, IMAGES, PROMPTS)
    assert scores["brightness"].tolist() == [0, 0.25, 1] and scores["length"].tolist() == [3, 3, 5]
    assert weights_of(rewards) == {"brightness": 2.0, "length": -1.0}
    assert_close(total(scores, rewards), torch.tensor([-3.0, -2.5, -3.0]))
    missing = scores | {"length": torch.tensor([3.0, float("nan"), 5.0])}
    assert total(missing, rewards).isnan().tolist() == [False, True, False]


def test_brightness_is_the_mean_of_all_pixels():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 1] = 0.6
    image[0, 2, 0, 0] = 0.4
    assert_close(Brightness().score(image, PROMPTS[:1]), torch.tensor([(4 * 0.6 + 0.4) / 12]))


def test_jpeg_size_is_minus_the_kilobytes_of_the_file():
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = torch.stack([torch.zeros(3, 32, 32), noise])
    for quality in (95, 20):
        sizes = []
        for image in images:
            file = io.BytesIO()
            pixels = (image.numpy() * 255).round().astype("uint8").transpose(1, 2, 0)
            Image.fromarray(pixels).save(file, "JPEG", quality=quality)
            sizes.append(len(file.getvalue()) / 1000)
        got = JPEGSize(quality=quality).score(images, PROMPTS[:2])
        assert_close(-got, torch.tensor(sizes))
        assert sizes[0] < sizes[1]
    assert JPEGSize().name == "jpeg_size"


def test_the_reward_of_a_world_is_one_for_its_own_drawings_and_less_for_others():
    rng, prompts = np.random.default_rng(0), find_world("scenes").training_prompts()[::40]
    drawings = torch.stack(
        [torch.from_numpy(draw(p.metadata["specification"], rng)).float() for p in prompts]
    )
    partial, strict = WorldReward(), WorldReward(strict=True)
    assert (partial.name, strict.name) == ("scenes", "scenes_strict")
    assert partial.score(drawings, prompts).tolist() == [1.0] * len(prompts)
    assert strict.score(drawings, prompts).tolist() == [1.0] * len(prompts)
    blank = torch.full_like(drawings, 0.98)
    assert strict.score(blank, prompts).tolist() == [0.0] * len(prompts)
    swapped = drawings.roll(len(prompts) // 2, 0)
    partly = partial.score(swapped, prompts)
    assert ((partly >= 0) & (partly <= 1)).all() and ((partly > 0) & (partly < 1)).any()
    assert strict.score(swapped, prompts).mean() < 0.5
