"""Another reward on workers of a Ray cluster (`core.team`).

Each worker has a copy of the reward. A batch is cut into as many parts as there are workers, in order, and so
is the answer put together. Every process of the run has workers of its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, PrivateAttr
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.team import Team
from thalweg.core.values import Prompt
from thalweg.rewards.clipscore import CLIPScore
from thalweg.rewards.function import FunctionReward
from thalweg.rewards.http import HTTPReward
from thalweg.rewards.ocr import OCR
from thalweg.rewards.pickscore import PickScore
from thalweg.rewards.pixels import Brightness, JPEGSize
from thalweg.rewards.shorthand import from_shorthand

MOVABLE = {
    "brightness": Brightness,
    "clipscore": CLIPScore,
    "function": FunctionReward,
    "http": HTTPReward,
    "jpeg_size": JPEGSize,
    "ocr": OCR,
    "pickscore": PickScore,
}
"""Rewards of images that need nothing of the run."""

Movable = Annotated[
    Annotated[
        FunctionReward | Brightness | CLIPScore | HTTPReward | JPEGSize | OCR | PickScore,
        Field(discriminator="kind"),
    ],
    BeforeValidator(partial(from_shorthand, kinds=MOVABLE)),
]


class RayReward(Part):
    """Lets workers of a Ray cluster judge: each has a copy of another reward and scores a part of a batch."""

    kind: Literal["ray"] = "ray"
    reward: Movable
    """What the workers judge by; its name and weight are this one's."""
    workers: PositiveInt = 1
    """Of each process of the run."""
    cpus_per_worker: NonNegativeFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    """Accelerators that Ray keeps for a worker; 0.5 puts two on one."""
    address: str | None = None
    """Of a cluster, such as `auto`; None is RAY_ADDRESS, or else a cluster of this machine and this run."""
    timeout: PositiveFloat = 300.0
    """Seconds to wait for all workers to start, and for an answer."""
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False
    _team: Team | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def weight(self) -> float:
        return self.reward.weight

    def open(self) -> None:
        """Start the workers, unless they run; raises UserError where they do not start."""
        self._opened()

    def close(self) -> None:
        """End the workers, and the cluster where it was started for them."""
        if self._team is not None:
            self._team.close()
            self._team = None

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        team = self._opened()
        parts = [part for part in torch.arange(len(images)).tensor_split(self.workers) if len(part)]
        asked = team.ask(
            "score",
            [(images[part].detach().cpu().numpy(), [prompts[i] for i in part.tolist()]) for part in parts],
        )
        return torch.tensor([score for scores in team.answers(asked, self.timeout) for score in scores])

    def _opened(self) -> Team:
        if self._team is None:
            team = Team(
                f"reward '{self.name}'",
                count=self.workers,
                cpus=self.cpus_per_worker,
                gpus=self.gpus_per_worker,
                address=self.address,
                address_key="rewards.address",
                remedy="mend the reward",
            )
            team.open(_Worker, self.reward, timeout=self.timeout)
            self._team = team
        return self._team


class _Worker:
    """What runs on the cluster."""

    def __init__(self, reward: Movable) -> None:
        self._reward = reward

    def open(self) -> None:
        if isinstance(self._reward, PickScore | CLIPScore | OCR):
            self._reward.open()

    def score(self, images: Any, prompts: Sequence[Prompt]) -> list[float]:
        # Ray's memory cannot be written to.
        return self._reward.score(torch.from_numpy(images.copy()), prompts).float().tolist()
