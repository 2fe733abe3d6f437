"""Fixtures: a tiny family as a policy, as a folder, and what its own unchanged pipeline makes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor

from models.diffusers.builders import TINY as BUILT_FIRST
from models.diffusers.builders_more import MORE
from thalweg.core.values import Prompt
from thalweg.models.diffusers.model import Adapters, DiffusersModel
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy
from thalweg.models.diffusers.readings import DiscreteReading

TINY = BUILT_FIRST | MORE
PROMPTS = (Prompt("a red square"), Prompt("two blue circles in the rain"))
STEPS = 4
"""Divides 1000: elsewhere DDIM steps to timesteps that it then does not visit."""


def quiet() -> None:
    """Both libraries warn of defaults that do not matter here."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()


def model_of(name: str, **changes: Any) -> DiffusersModel:
    tiny = TINY[name]
    settings = {"lora": Adapters(rank=2, alpha=2), **tiny.settings, "call": dict(tiny.call), **changes}
    return DiffusersModel(**{"path": name, **settings})


@pytest.fixture
def tiny_policy_of() -> Callable[..., DiffusersPolicy]:
    """Makes a policy over a tiny pipeline of a family: `tiny_policy_of("sd3", guidance_scale=1.0)`."""

    def make(name: str, **changes: Any) -> DiffusersPolicy:
        return DiffusersPolicy(prepare(TINY[name].build()), model_of(name, **changes))

    return make


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Saves a tiny pipeline of a family as its authors would: `tiny_folder("sd3")`."""

    def save(name: str) -> Path:
        TINY[name].build().save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


class Recording(diffusers.FlowMatchEulerDiscreteScheduler):
    """The stock scheduler, which also writes down the states; a copy of it writes into the same list."""

    states: list[Tensor]

    def scale_model_input(self, sample, timestep):
        return sample

    def step(self, model_output, timestep, sample, **options):  # type: ignore[override]
        result = super().step(model_output, timestep, sample, **options)
        self.states.append(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    def __deepcopy__(self, memo):
        copied = Recording.from_config(self.config)
        copied.states = self.states
        return copied


class RecordingDDIM(diffusers.DDIMScheduler):
    """The same for pipelines that predict noise."""

    states: list[Tensor]

    def step(self, model_output, timestep, sample, **options):  # type: ignore[override]
        result = super().step(model_output, timestep, sample, **options)
        self.states.append(result[0])
        return result

    @property
    def sigmas(self) -> Tensor:
        alpha_bar = self.alphas_cumprod[self.timesteps]
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return torch.cat([noise / (signal + noise), torch.zeros(1)])


@dataclass
class StockRun:
    """A policy, and a run of the unchanged pipeline from the same noise."""

    policy: DiffusersPolicy
    noise: Tensor
    sigmas: Tensor
    latents: Tensor
    """Where the pipeline's own Euler steps end, in the policy's latent space."""
    outputs: tuple[Tensor, ...]


_RUNS: dict[str, StockRun] = {}


@pytest.fixture
def stock_run() -> Callable[[str], StockRun]:
    """A policy of a family and what its stock pipeline makes; worked out once."""

    def run(name: str) -> StockRun:
        if name not in _RUNS:
            _RUNS[name] = _run(name)
        return _RUNS[name]

    return run


def _run(name: str) -> StockRun:
    policy = DiffusersPolicy(prepare(TINY[name].build()), model_of(name))
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    states, outputs, sigmas = [], [], torch.zeros(0)
    # Together where the stock pipeline is right: it pads prompts of different lengths, and we do not.
    for rows in ([0], [1]) if TINY[name].stock_is_wrong_in_batches else ([0, 1],):
        stock = TINY[name].build()
        if isinstance(policy.pipeline.scheduler.reading, DiscreteReading):
            stock.scheduler = RecordingDDIM.from_config(stock.scheduler.config, clip_sample=False)
        else:
            stock.scheduler = Recording.from_config(stock.scheduler.config)
        stock.scheduler.states = []
        made = stock(
            prompt=policy.encoder.as_given([PROMPTS[row].text for row in rows]),
            num_inference_steps=STEPS,
            output_type="pt",
            return_dict=False,
            generator=torch.Generator().manual_seed(0),
            **policy.given(noise[rows], policy.arguments),
            **policy.arguments | {n: [policy.arguments.get(n, "")] * len(rows) for n in policy.encoder.texts},
        )
        states.append(policy.pack(stock.scheduler.states[-len(policy.family.latents) :]))
        outputs.append([output for output in made if isinstance(output, Tensor)])
        sigmas = stock.scheduler.sigmas.cpu()
        if stock.scheduler.config.get("invert_sigmas"):
            sigmas = 1 - sigmas
    together = tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    # √ᾱ x0 + √(1-ᾱ) ε has variance 1; (1-σ) x0 + σ ε has (1-σ)² + σ², which is 1 where a flow starts.
    start = ((1 - sigmas[0]) ** 2 + sigmas[0] ** 2).sqrt() * noise
    return StockRun(policy, start, sigmas, torch.cat(states), together)
