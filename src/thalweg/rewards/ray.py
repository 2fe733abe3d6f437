"""Another reward on workers of a Ray cluster (Moritz et al. 2018, arXiv:1712.05889).

Each worker is a Ray actor with a copy of the reward, on whatever machine has the processors it asks for. A
batch is cut into as many parts as there are workers, in order, and so is the answer put together. Every
process of the run has workers of its own.
"""

import importlib
import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, PrivateAttr
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
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
    _team: list[Any] = PrivateAttr(default_factory=list)
    _started_ray: bool = PrivateAttr(default=False)

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def weight(self) -> float:
        return self.reward.weight

    def open(self) -> None:
        """Start the workers, unless they run; raises UserError where they do not start."""
        if self._team:
            return
        if find_spec("ray") is None:
            raise UserError(f"reward '{self.name}': ray is not installed; pip install 'thalweg[ray]'")
        ray = _ray()
        if not ray.is_initialized():
            self._connect()
        worker = ray.remote(_Worker).options(num_cpus=self.cpus_per_worker, num_gpus=self.gpus_per_worker)
        self._team.extend(worker.remote(self.reward) for _ in range(self.workers))
        try:
            self._answers([one.open.remote() for one in self._team])
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """End the workers, and the cluster where it was started for them."""
        for worker in self._team:
            _ray().kill(worker)
        self._team.clear()
        if self._started_ray:
            _ray().shutdown()
            self._started_ray = False

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        self.open()
        parts = [part for part in torch.arange(len(images)).tensor_split(self.workers) if len(part)]
        asked = [
            worker.score.remote(images[part].detach().cpu().numpy(), [prompts[i] for i in part.tolist()])
            for worker, part in zip(self._team, parts, strict=False)
        ]
        return torch.tensor([score for scores in self._answers(asked) for score in scores])

    def _connect(self) -> None:
        # A run tells nobody of itself.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _ray().init(address=self.address, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            where = self.address or os.environ.get("RAY_ADDRESS", "this machine")
            raise UserError(
                f"reward '{self.name}': no Ray cluster at {where} ({str(error).splitlines()[0]}); start it "
                "with `ray start`, or mend rewards.address"
            ) from error
        self._started_ray = True

    def _answers(self, asked: Sequence[Any]) -> list[Any]:
        """What all workers answer, in their order."""
        if not asked:
            return []
        ray = _ray()
        ray.wait(list(asked), num_returns=len(asked), timeout=self.timeout)
        found = []
        for number, question in enumerate(asked, 1):
            who = f"reward '{self.name}': Ray worker {number} of {self.workers}"
            try:
                found.append(ray.get(question, timeout=0))
            except ray.exceptions.RayActorError as error:
                raise UserError(
                    f"{who} died ({_line(error)}); look into Ray's logs, give it more memory or take fewer "
                    "workers, and resume the run"
                ) from error
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from error
                raise UserError(
                    f"{who} raised {type(error.cause).__name__}: {_line(error.cause)}; mend the reward, and "
                    "resume the run"
                ) from error
            except ray.exceptions.GetTimeoutError as error:
                there = {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
                raise UserError(
                    f"{who} gave no answer within {self.timeout:g} s; they need "
                    f"{self.workers * self.cpus_per_worker:g} CPUs and "
                    f"{self.workers * self.gpus_per_worker:g} GPUs of the cluster's {there['CPU']:g} and "
                    f"{there['GPU']:g}: take fewer workers, give each less, or raise timeout"
                ) from error
        return found


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


def _ray() -> Any:
    """Slow to import, and not everywhere."""
    return importlib.import_module("ray")


def _line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
