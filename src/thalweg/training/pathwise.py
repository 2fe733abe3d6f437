"""Losses that run through several passes and a differentiable reward, micro-batch by micro-batch.

Each micro-batch of trajectories is handed the velocity field at its conditions. Named weights are asked
for without gradient, before the policy's graph is opened; `models.weights` refuses the other order. Shapes: B
rows, ... latent axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thalweg.core.errors import UserError
from thalweg.core.values import Condition, Paths, Prompt
from thalweg.models.contract import Policy
from thalweg.models.sizes import decoded
from thalweg.rewards import Reward, finished, score, total

Judge = Callable[[Policy, Tensor, Sequence[int], str], Tensor]
"""(policy, latents, condition rows, wording) -> what they are worth, with gradient."""


def judge_of(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> Judge:
    """The weighted rewards of finished latents; the wording's {} stands for the prompt."""
    of_samples = finished(rewards)

    def judge(policy: Policy, latents: Tensor, rows: Sequence[int], wording: str) -> Tensor:
        asked = [replace(prompts[i], text=wording.replace("{}", prompts[i].text)) for i in rows]
        made = decoded(policy, latents, asked)
        found = torch.cat([total(score(of_samples, some, those), of_samples) for some, those, _ in made])
        worth = found[torch.cat([at for _, _, at in made]).argsort()]
        if latents.requires_grad and not worth.requires_grad:
            raise UserError(
                "rewards: no gradient comes back from them to the latents, through the model's decoder; use "
                "another model or reward, or an objective that needs no gradient, such as forward"
            )
        return worth

    return judge


@dataclass(frozen=True)
class FieldAtRows:
    """Fulfils `objectives.contract.VelocityField`."""

    policy: Policy
    condition: Condition
    """One row a row."""
    judge: Callable[[Tensor, str], Tensor]

    def velocity(
        self, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], *, recompute: bool = False
    ) -> Float[Tensor, "B ..."]:
        if recompute and torch.is_grad_enabled():
            found = checkpoint(self.policy.velocity, x, sigma, self.condition, use_reentrant=False)
            assert isinstance(found, Tensor)
        else:
            found = self.policy.velocity(x, sigma, self.condition)
        if found.requires_grad:
            self.policy.passes.backwards += len(x) * self.policy.passes_per_velocity
        return found

    @torch.no_grad()
    def velocity_of(
        self, name: str, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        with self.policy.weights.use(name):
            return self.policy.velocity(x, sigma, self.condition)

    def pull_back(
        self, name: str, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], slope: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        self.policy.passes.backwards += len(x) * self.policy.passes_per_velocity
        with self.policy.weights.use(name), torch.enable_grad():
            at = x.detach().requires_grad_()
            found = self.policy.velocity(at, sigma, self.condition)
            pulled = self.policy.weights.pull_back(found, at, slope)
        return found.detach(), pulled

    def reward(self, latents: Float[Tensor, "B ..."], wording: str = "{}") -> Float[Tensor, " B"]:
        return self.judge(latents, wording)

    def as_stored(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        rounded = x.detach().to(self.policy.latent_dtype).to(x.dtype)
        return x + (rounded - x.detach())


def field_at(policy: Policy, condition: Condition, rows: Paths, judge: Judge | None) -> FieldAtRows:
    """The velocity field at these rows."""

    def at_rows(latents: Tensor, wording: str) -> Tensor:
        assert judge is not None
        return judge(policy, latents, rows.condition.tolist(), wording)

    return FieldAtRows(policy, condition.index(rows.condition), at_rows)
