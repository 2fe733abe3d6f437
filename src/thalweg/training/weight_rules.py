"""How named weights follow the policy: by copies, moving averages or learning its samples.

    name <- keep * name + (1 - keep) * source,    keep = min(start + ramp (n - delay), decay)

and keep = 0 before the delay. n counts the policy's updates, also where an average moves only once an
iteration, as the authors' codes count. In a recipe `update: slow` stands for one of the schedules in PRESETS,
which come from DiffusionNFT, AWM, DGPO and CRD.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field

from thalweg.core.names import nearest
from thalweg.core.part import Part
from thalweg.models.rounding import Format, rounded
from thalweg.models.shards import put, whole
from thalweg.models.weights import POLICY, NamedWeights
from thalweg.objectives.sigma_draw import Stratified
from thalweg.training.optimise import Optim


class Frozen(Part):
    """Stays what it was at the start."""

    kind: Literal["frozen"] = "frozen"


class Copy(Part):
    """Becomes the source every so often."""

    kind: Literal["copy"] = "copy"
    every: int = Field(default=1, ge=1)
    """Iterations between copies."""


class EMA(Part):
    """Follows the source as an exponential moving average."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(ge=0, le=1)
    """Largest share of itself that is kept."""
    ramp: float | None = Field(default=None, gt=0)
    """How fast the kept share grows with each update; None keeps `decay` from the start."""
    start: float = Field(default=0.0, ge=0, le=1)
    """The kept share that the ramp begins with."""
    delay: int = Field(default=0, ge=0)
    """Updates up to which the source is copied."""
    per: Literal["iteration", "update"] = "iteration"
    """When the average moves."""

    def keep(self, updates: int) -> float:
        if updates < self.delay:
            return 0.0
        rising = self.start + (self.ramp or 0.0) * (updates - self.delay)
        return self.decay if self.ramp is None else min(rising, self.decay)


class Rounded(Part):
    """Becomes the source rounded to low precision after every iteration: emulates a quantised copy that
    explores (Sol-RL, arXiv:2604.06916). With LoRA only the adapters are rounded, the base is not.
    """

    kind: Literal["rounded"] = "rounded"
    format: Format = "fp4"
    block_size: int = Field(default=16, ge=1)
    """Neighbouring values that share a scale, the largest of them."""


class Trained(Part):
    """Learns the flow of the samples that the policy makes, in every iteration before the policy itself: the
    fake score of distribution matching.
    """

    kind: Literal["trained"] = "trained"
    optim: Optim
    """Its own optimizer; `updates_per_iteration` says how many steps it takes, each on all samples of the
    iteration under fresh noise.
    """
    sigmas: Stratified = Stratified(num_sigmas=1)
    """The noise levels of a sample in one step."""


Update = Annotated[Frozen | Copy | EMA | Rounded | Trained, Field(discriminator="kind")]
PresetName = Literal["frozen", "offline", "copy", "slow", "fast", "delayed", "raised", "trailing"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"kind": "frozen"},
    "offline": {"kind": "frozen"},
    "copy": {"kind": "copy"},
    "slow": {"kind": "ema", "ramp": 0.001, "decay": 0.5},
    "fast": {"kind": "ema", "ramp": 0.02, "decay": 0.99},
    "delayed": {"kind": "ema", "ramp": 0.0075, "decay": 0.999, "delay": 75},
    "raised": {"kind": "ema", "start": 0.25, "ramp": 0.005, "decay": 0.999},
    "trailing": {"kind": "ema", "ramp": 0.001, "decay": 0.3},
}
"""Schedules by name. `offline`, which keeps all of itself, is DiffusionNFT's word for `frozen`; `raised` is
what CRD measures its implied rewards from, and `trailing` the fast average that AWM and DGPO step away from.
"""


def _preset(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(
            f"no schedule is called '{value}'{nearest(value, PRESETS)}; or give a mapping with `kind`"
        )
    return dict(PRESETS[value])


class WeightRule(Part):
    """One named set of weights."""

    model_config = ConfigDict(populate_by_name=True)

    source: str = Field(default=POLICY, alias="from")
    """The set it starts from and follows."""
    update: Annotated[Update, BeforeValidator(_preset, json_schema_input_type=Update | PresetName)]
    """How it follows: `kind` and its numbers, or the name of a published schedule."""
    init: str | None = None
    """Start from these weights and not from `from`: a run's folder, a checkpoint, or a safetensors file."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Velocities of this set are guided so strongly; None guides them as the model."""


def add_named(weights: NamedWeights, rules: dict[str, WeightRule]) -> None:
    """Create every named set, a copy of its source."""
    for name, rule in rules.items():
        weights.add(name, rule.source)
        if rule.guidance_scale is not None:
            weights.guidance[name] = rule.guidance_scale
        if isinstance(rule.update, Rounded):
            _round(weights, name, rule)


def after_update(weights: NamedWeights, rules: dict[str, WeightRule], updates: int) -> None:
    """Move the averages that follow every update; `updates` are done."""
    for name, rule in rules.items():
        if isinstance(rule.update, EMA) and rule.update.per == "update":
            weights.blend(name, rule.source, rule.update.keep(updates))


def after_iteration(
    weights: NamedWeights, rules: dict[str, WeightRule], iterations: int, updates: int
) -> None:
    """Move what follows every iteration; so many iterations and updates are done."""
    for name, rule in rules.items():
        if isinstance(rule.update, EMA) and rule.update.per == "iteration":
            weights.blend(name, rule.source, rule.update.keep(updates))
        if isinstance(rule.update, Copy) and iterations % rule.update.every == 0:
            weights.blend(name, rule.source, 0.0)
        if isinstance(rule.update, Rounded):
            weights.blend(name, rule.source, 0.0)
            _round(weights, name, rule)


@torch.no_grad()
def _round(weights: NamedWeights, name: str, rule: WeightRule) -> None:
    assert isinstance(rule.update, Rounded)
    for tensor in weights.tensors(name).values():
        put(tensor, rounded(whole(tensor), rule.update.format, rule.update.block_size))
