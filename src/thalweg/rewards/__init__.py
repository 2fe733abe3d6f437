"""How good the result is: one file a reward, named scores out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.forest import Forest, Scores
from thalweg.core.values import Made, Media, Prompt
from thalweg.models.sizes import Decoded
from thalweg.rewards.clipscore import CLIPScore
from thalweg.rewards.function import FunctionReward
from thalweg.rewards.http import HTTPReward
from thalweg.rewards.loudness import Loudness
from thalweg.rewards.ocr import OCR, target_of
from thalweg.rewards.pickscore import PickScore
from thalweg.rewards.pixels import Brightness, JPEGSize
from thalweg.rewards.ray import RayReward
from thalweg.rewards.scorer import ScorerReward
from thalweg.rewards.shorthand import from_shorthand
from thalweg.rewards.world import WorldReward

KINDS = {
    "brightness": Brightness,
    "clipscore": CLIPScore,
    "function": FunctionReward,
    "http": HTTPReward,
    "jpeg_size": JPEGSize,
    "loudness": Loudness,
    "ocr": OCR,
    "pickscore": PickScore,
    "ray": RayReward,
    "scorer": ScorerReward,
    "world": WorldReward,
}


Reward = Annotated[
    Annotated[
        WorldReward
        | FunctionReward
        | Brightness
        | CLIPScore
        | HTTPReward
        | JPEGSize
        | Loudness
        | OCR
        | PickScore
        | RayReward
        | ScorerReward,
        Field(discriminator="kind"),
    ],
    BeforeValidator(partial(from_shorthand, kinds=KINDS)),
]


def open_rewards(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> None:
    """Load what the rewards need, and look whether they can judge these prompts; raises UserError."""
    for reward in rewards:
        if isinstance(reward.reward if isinstance(reward, RayReward) else reward, OCR):
            for prompt in prompts:
                target_of(prompt)
        if isinstance(reward, PickScore | CLIPScore | OCR | RayReward):
            reward.open()


def close_rewards(rewards: Sequence[Reward]) -> None:
    """End what was started for them."""
    for reward in rewards:
        if isinstance(reward, RayReward):
            reward.close()


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


def score_all(rewards: Sequence[Reward], made: Sequence[Decoded]) -> dict[str, Float[Tensor, " _"]]:
    """Every reward of samples of all sizes, in the order of their rows."""
    each = [score(rewards, samples, asked) for samples, asked, _ in made]
    order = torch.cat([rows for _, _, rows in made]).argsort()
    return {name: torch.cat([scores[name] for scores in each])[order] for name in each[0]}


def finished(rewards: Sequence[Reward]) -> list[Reward]:
    """Those that judge finished samples; the others judge states in the middle of denoising."""
    return [reward for reward in rewards if not judges_steps(reward)]


def judges_steps(reward: Reward) -> bool:
    """Whether the recipe has it judge noisy states in place of finished samples."""
    return isinstance(reward, ScorerReward) and reward.at == "steps"


def score_steps(rewards: Sequence[Reward], forest: Forest) -> dict[str, tuple[Float[Tensor, " _"], ...]]:
    """For every level, what each state that a trained step leads to is worth, NaN elsewhere."""
    scores = {}
    for reward in rewards:
        if not (isinstance(reward, ScorerReward) and judges_steps(reward)):
            continue
        levels = []
        for level in forest.levels:
            values = torch.full((len(level.parent),), torch.nan)
            node = level.trained.nonzero().flatten()
            if len(node):
                asked = [forest.prompts[i] for i in forest.roots.condition[level.root[node]].tolist()]
                x = level.latents[level.row[node]]
                with torch.no_grad():
                    sigma = level.sigma[node].to(x.device)
                    values[node] = reward.score_latents(x, sigma, asked).float().cpu()
            levels.append(values)
        scores[reward.name] = tuple(levels)
    return scores


def value_of(rewards: Sequence[Reward], name: str) -> Callable[[Tensor, Tensor, Sequence[Prompt]], Tensor]:
    """(x, sigma, prompts) -> the named reward of noisy states, differentiable in x."""
    return next(r for r in rewards if isinstance(r, ScorerReward) and r.name == name).score_latents


def without_infinite(scores: Scores) -> Scores:
    """The same scores with NaN in place of what is not finite."""

    def known(values: Tensor) -> Tensor:
        return values.where(values.isfinite(), torch.nan)

    return replace(
        scores,
        leaves={name: known(v) for name, v in scores.leaves.items()},
        steps={name: tuple(known(v) for v in levels) for name, levels in scores.steps.items()},
        probes={name: known(v) for name, v in scores.probes.items()},
    )


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
