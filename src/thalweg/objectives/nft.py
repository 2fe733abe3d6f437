"""DiffusionNFT: the forward process, no path (Zheng et al. 2025, arXiv:2509.16117; NVlabs/DiffusionNFT).

    v+ = beta v + (1-beta) v_old,      v- = (1+beta) v_old - beta v,      x̂± = x_sigma - sigma v±
    L = M / beta [ r l+ + (1-r) l- ] + beta_kl |v - v_ref|²,      l± = <(x̂± - x0)²> / max(<|x̂± - x0|>, 1e-5)

r = clip(A, -M, M) / (2M) + 1/2. <.> is a mean over latent elements and the divisor has no gradient. The
"KL" is a plain squared difference of velocities, as in the authors' code.
Shapes: B rows, R rewards (added up), ... latent axes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Samples
from thalweg.flow import LinearPath, x0_from_velocity
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.forward_rows import samples
from thalweg.objectives.sigma_draw import Stratified

PATH = LinearPath()


class NFT(Part):
    """One loss term a sample and noise level."""

    kind: Literal["nft"] = "nft"
    beta: PositiveFloat = 1.0
    """How far v+ and v- reach beyond the old policy; smaller moves further, and saturates later."""
    advantage_max: PositiveFloat = 5.0
    """M: the advantage at which r reaches 0 or 1."""
    kl_weight: float = Field(default=1e-4, ge=0)
    """beta_kl; 0 spares the passes of the reference."""
    sigmas: Stratified = Stratified()
    """The noise levels of a sample."""
    old: str = "old"
    """Named weights that v+ and v- are built around."""
    reference: str = "reference"
    """Named weights the KL is taken to."""
    unit: ClassVar[Unit] = "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        return (self.old, self.reference) if self.kl_weight > 0 else (self.old,)

    @property
    def keeps_mean(self) -> bool:
        return False

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Samples:
        return samples(forest, advantages, self.sigmas, seed=seed, iteration=iteration)

    def inputs(self, rows: Samples) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return PATH.corrupt(rows.x0, rows.noise, rows.sigma), rows.sigma

    def measure(
        self,
        rows: Samples,
        x: Float[Tensor, "B ..."],
        velocity: Float[Tensor, "B ..."],
        anchors: Mapping[str, Float[Tensor, "B ..."]],
    ) -> Scalars:
        old = anchors[self.old]
        moved = self.beta * (velocity - old)
        scalars = {
            "positive": _adaptive(x0_from_velocity(x, old + moved, rows.sigma), rows.x0),
            "negative": _adaptive(x0_from_velocity(x, old - moved, rows.sigma), rows.x0),
            "old_distance": (velocity - old).pow(2).flatten(1).mean(1),
        }
        if self.kl_weight > 0:
            scalars["kl"] = (velocity - anchors[self.reference]).pow(2).flatten(1).mean(1)
        return scalars

    def loss(
        self, scalars: Scalars, rows: Samples
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        limit = self.advantage_max
        share = rows.advantages.sum(1).clamp(-limit, limit) / (2 * limit) + 0.5
        terms = limit / self.beta * (share * scalars["positive"] + (1 - share) * scalars["negative"])
        report = {"old_distance": scalars["old_distance"].detach()}
        if "kl" in scalars:
            terms = terms + self.kl_weight * scalars["kl"]
            report["kl"] = scalars["kl"].detach()
        return terms * rows.weight, report


def _adaptive(x0_hat: Float[Tensor, "B ..."], x0: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    error = (x0_hat - x0).flatten(1)
    scale = error.detach().double().abs().mean(1).clamp(min=1e-5).to(error.dtype)
    return error.pow(2).mean(1) / scale
