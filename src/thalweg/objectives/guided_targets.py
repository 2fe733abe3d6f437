"""Which of several targets of distribution matching counts for how much: GDMD (2026, arXiv:2604.19009).

    x̃_k = x - g_k,      A_k = (R(x̃_k) - mean) / max(std, s) over the K targets of a sample,      r_k in [0, 1]
    w_k = 1 + λ (2 r_k - 1),      r_k = clip(A_k, -M, M) / (2M) + 1/2

The update is rewarded, not the few-step sample: of K directions from other draws of t and ε, those whose
target is worth more count for more. Equal rewards leave plain matching. The paper's formulas were not
available: this is our reading of its abstract. Shapes: B rows, K targets.
"""

from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.part import Part
from thalweg.objectives.advantage_map import optimality


class Guide(Part):
    """The rewards of the recipe judge where distribution matching leads; they need no gradient."""

    num_targets: int = Field(default=4, ge=2)
    """K: directions of each sample, each a pass of the teacher and one of the fake."""
    weight: float = Field(default=1.0, gt=0, le=1)
    """λ; up to 1, so that no target pushes away."""
    advantage_max: PositiveFloat = 5.0
    """M: the advantage at which r reaches 0 or 1."""
    std_floor: PositiveFloat = 0.01
    """s, in rewards: targets of one sample differ in t and ε alone, so that their rewards lie close together
    and a bare standard deviation would magnify noise.
    """

    def counts(self, rewards: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """w: what each target counts; the mean is 1 where none is clipped."""
        spread = rewards.std(1, correction=0, keepdim=True).clamp(min=self.std_floor)
        advantage = (rewards - rewards.mean(1, keepdim=True)) / spread
        return 1 + self.weight * (2 * optimality(advantage, self.advantage_max) - 1)
