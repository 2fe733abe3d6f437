"""How good the result is: one file a reward, named scores out."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.names import nearest
from thalweg.core.values import Made, Media, Prompt
from thalweg.rewards.function import FunctionReward
from thalweg.rewards.loudness import Loudness
from thalweg.rewards.pixels import Brightness, JPEGSize
from thalweg.rewards.world import WorldReward
from thalweg.worlds import WORLDS

KINDS = {
    "brightness": Brightness,
    "function": FunctionReward,
    "jpeg_size": JPEGSize,
    "loudness": Loudness,
    "world": WorldReward,
}


def _from_shorthand(value: Any) -> Any:
    """A world's name, a kind, `module:function` or a function stands for the reward it names."""
    if callable(value) and not isinstance(value, tuple(KINDS.values())):
        return {"kind": "function", "function": value}
    if not isinstance(value, str):
        return value
    if value in WORLDS:
        return {"kind": "world", "world": value}
    if ":" in value:
        return {"kind": "function", "function": value}
    if value in KINDS:
        return {"kind": value}
    raise ValueError(f"no reward is called '{value}'{nearest(value, [*WORLDS, *KINDS])}")


Reward = Annotated[
    Annotated[WorldReward | FunctionReward | Brightness | JPEGSize | Loudness, Field(discriminator="kind")],
    BeforeValidator(_from_shorthand),
]


def score(rewards: Sequence[Reward], made: Made, prompts: Sequence[Prompt]) -> dict[str, Float[Tensor, " B"]]:
    """Every reward of every sample, by name. NaN marks a sample that a reward could not judge."""
    return {reward.name: _score(reward, made, prompts).float() for reward in rewards}


def _score(reward: Reward, made: Made, prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
    """Each reward gets what it needs; one of images is averaged over the frames of a video."""
    frames, audio = (made.frames, made.audio) if isinstance(made, Media) else (made, None)
    if isinstance(reward, Loudness):
        if audio is None:
            raise UserError(f"reward '{reward.name}': judges sound, and the model makes none; choose another")
        return reward.score(audio, prompts)
    if isinstance(made, Tensor):
        return reward.score(made, prompts)
    if frames is None:
        raise UserError(f"reward '{reward.name}': judges images, and the model makes sound; try loudness")
    count = frames.shape[1]
    each = [prompt for prompt in prompts for _ in range(count)]
    return reward.score(frames.flatten(0, 1), each).unflatten(0, (-1, count)).float().mean(1)


def weights_of(rewards: Sequence[Reward]) -> dict[str, float]:
    return {reward.name: reward.weight for reward in rewards}


def total(scores: Mapping[str, Float[Tensor, " B"]], rewards: Sequence[Reward]) -> Float[Tensor, " B"]:
    """The weighted sum, NaN where one of them is."""
    return torch.stack([scores[r.name] * r.weight for r in rewards]).sum(0)


def require_finite(scores: Mapping[str, Float[Tensor, " B"]], prompts: Sequence[Prompt]) -> None:
    """Raises where a score is NaN or infinite."""
    for name, values in scores.items():
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"reward '{name}' returned {values[bad[0]]} for {len(bad)} of {len(values)} images, "
                "the first for "
                f"prompt '{prompts[bad[0]].text}'; return finite numbers, or set "
                "run.invalid_rewards=drop to leave "
                "such samples out"
            )
