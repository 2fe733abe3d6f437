"""A learned judge that reads latents at any noise level and hands back a gradient.

The probability that a sample of an embedded world turns out exactly right, from its latents x at σ
(`models/miniature/scorer.py`). A process reward, a critic or a direct reward gradient may ask it where the
exact judge, which needs a finished image and has no gradient, cannot be asked. σ is 1 at noise and 0 at data.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import field_validator
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.flow.broadcast import PerSample, per_sample
from thalweg.models.miniature.scorer import Scorer, load_scorer
from thalweg.worlds import WORLDS, find_world


class ScorerReward(Part):
    """A small network's probability that the sample comes out exactly right, at any noise level."""

    kind: Literal["scorer"] = "scorer"
    world: str = "scenes"
    at: Literal["samples", "steps"] = "samples"
    """Judge finished samples; or every state that a trained step leads to, as credit 'process' and
    rollout.guidance read it.
    """
    log_odds: bool = False
    """log p/(1-p) in place of p: its gradient does not fade where the network is sure."""
    weight: float = 1.0
    differentiable: ClassVar[bool] = True
    per_step: ClassVar[bool] = True

    @field_validator("world")
    @classmethod
    def _has_a_scorer(cls, name: str) -> str:
        if find_world(name).scorer is None:
            able = ", ".join(world.name for world in WORLDS.values() if world.scorer)
            raise ValueError(f"the world '{name}' has no scorer; choose one of: {able}")
        return name

    @property
    def name(self) -> str:
        return f"{self.world}_scorer"

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        """Of finished images in [0, 1]; with a gradient where they have one."""
        return self.score_latents(2 * images - 1, 0.0, prompts).cpu()

    def score_latents(
        self, latents: Float[Tensor, "B 3 H W"], sigma: PerSample, prompts: Sequence[Prompt]
    ) -> Float[Tensor, " B"]:
        """Of states at σ on the way from noise to data, with a gradient to them."""
        world = find_world(self.world)
        tokens = world.tokenize([prompt.text for prompt in prompts]).to(latents.device)
        scorer = _load(self.world, latents.device)
        logit = scorer(latents.float(), per_sample(sigma, latents).float(), tokens)[0]
        return logit if self.log_odds else logit.sigmoid()


@cache
def _load(world: str, device: torch.device) -> Scorer:
    weights = find_world(world).scorer
    assert isinstance(weights, Path)
    if not weights.is_file():
        raise UserError(
            f"rewards: the weights {weights.name} of the scorer of '{world}' are missing from the "
            f"installation; reinstall thalweg, or make them with scripts/train_{world}_scorer.py"
        )
    return load_scorer(weights).to(device)
