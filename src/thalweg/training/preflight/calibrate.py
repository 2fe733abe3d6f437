"""How much noise each step bears, DenseGRPO (arXiv:2601.20218, Algorithm 1): as much as leaves as many steps
that gain as steps that lose. With too much, everything that is drawn loses.

    round:      psi_j += e2 if |gaining_j - losing_j| <= e1, else psi_j -= e2

Our reading: e1 = 10 % of the steps that gained or lost, but no less than what tossing a coin for each would
make of it, their square root; e2 = 0.05; psi stays at e2 or above; and a number of rounds that is given. The
paper says none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes
from thalweg.credit import DenseCredit
from thalweg.credit.dense import gains, values_of, weighted
from thalweg.flow import StepSDE
from thalweg.rewards import weights_of
from thalweg.training.collect import collect, judge
from thalweg.training.data.prompts import draw_prompts, open_prompts
from thalweg.training.policy import load_policy
from thalweg.training.recipe.schema import Recipe

BALANCED = 0.1
"""Of the steps that gained or lost."""
CHANGE = 0.05
"""e2, of the noise coefficient."""


@dataclass(frozen=True)
class Tally:
    """What the steps from one noise level came to in a round."""

    sigma: float
    noise: float
    """psi that they were drawn with."""
    gaining: int
    losing: int
    count: int

    @property
    def next_noise(self) -> float:
        moved = self.gaining + self.losing
        balanced = abs(self.gaining - self.losing) <= max(BALANCED * moved, moved**0.5)
        return max(self.noise + (CHANGE if balanced else -CHANGE), CHANGE)


def calibrate(
    recipe: Recipe, rounds: int, say: Callable[[int, list[Tally]], None] = lambda number, tallies: None
) -> StepSDE:
    """A kernel whose noise the recipe's untrained model bears; `say` hears of every round."""
    if not isinstance(recipe.credit, DenseCredit):
        raise UserError(
            f"calibrate: reads what single steps gain, and {recipe.name} has credit '{recipe.credit.kind}'; "
            "give a recipe with credit 'dense', such as dense-grpo"
        )
    policy, kernel = load_policy(recipe), recipe.rollout.kernel
    assert kernel is not None
    prompts = open_prompts(recipe.data, recipe.model.world)
    sigmas = recipe.rollout.sigmas(recipe.seed, 0)
    steps = recipe.rollout.trained_steps(recipe.seed, 0)
    nowhere = torch.zeros(len(sigmas) - 1, 1)
    std = kernel.transition(nowhere, nowhere, sigmas[:-1], sigmas[1:]).std
    # Of any kernel: the coefficient g that makes its standard deviation, s = g sqrt(D).
    noise = (std / (sigmas[:-1] - sigmas[1:]).sqrt())[steps].tolist()
    levels = tuple(zip(sigmas[steps].tolist(), noise, strict=True))
    for number in range(rounds):
        table = StepSDE(levels=levels)
        drawn = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"kernel": table})})
        asked = draw_prompts(prompts, recipe.data, recipe.seed, number)
        forest = collect(drawn, policy, asked, Processes(), number).forest
        scores, weights = judge(drawn, policy, forest), weights_of(recipe.rewards)
        values = values_of(forest, weighted(scores.leaves, weights), weighted(scores.probes, weights))
        found = gains(forest, values, values)
        tallies = [
            Tally(
                sigma=sigma,
                noise=psi,
                gaining=int((found[step + 1] > 0).sum()),
                losing=int((found[step + 1] < 0).sum()),
                count=int(found[step + 1].isfinite().sum()),
            )
            for step, (sigma, psi) in zip(steps, levels, strict=True)
        ]
        say(number, tallies)
        levels = tuple((tally.sigma, tally.next_noise) for tally in tallies)
    return StepSDE(levels=tuple((round(sigma, 4), round(psi, 4)) for sigma, psi in levels))
