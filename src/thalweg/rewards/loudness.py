"""The plainest reward of a sound, for first steps and for tests of a whole pipeline."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from thalweg.core.part import Part
from thalweg.core.values import Prompt


class Loudness(Part):
    """Root mean square of the wave, in decibels below full scale; silence counts as -120."""

    kind: Literal["loudness"] = "loudness"
    weight: float = 1.0
    """Negative to reward quiet."""
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.kind

    def score(self, audio: Float[Tensor, "B A T"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        power = audio.float().flatten(1).square().mean(1)
        return 10 * power.clamp(min=1e-12).log10().cpu()
