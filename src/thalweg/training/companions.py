"""Named weights that learn: the flow of the policy's own samples, by an optimizer of their own.

    L = <(v - (ε - x0))²>,      x = (1-σ) x0 + σ ε,  x0 a sample of the iteration

This is the fake score of distribution matching (Yin et al. 2024, arXiv:2405.14867). Its steps come before the
policy's, whose samples are then those it has seen. Shapes: B rows.
"""

from collections.abc import Mapping

import torch

from thalweg.core.forest import Forest
from thalweg.core.processes import Processes
from thalweg.core.values import Metrics
from thalweg.models import POLICY, Policy
from thalweg.models.weights import NamedWeights
from thalweg.objectives import Forward
from thalweg.objectives.forward_rows import samples
from thalweg.objectives.rules import Weighted
from thalweg.objectives.surrogate import Regression
from thalweg.training.backward import backward
from thalweg.training.optimise import make_optimizer, update
from thalweg.training.recipe.schema import Recipe
from thalweg.training.weight_rules import Trained

FLOW_MATCHING = Forward(surrogate=Regression(weighting="uniform"), rule=Weighted())

Optimizers = Mapping[str, torch.optim.Optimizer]
"""By the name of the weights that each steps."""


def make_optimizers(weights: NamedWeights, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    """The policy's, and one for each set that learns."""
    of_sets = {
        name: rule.update.optim for name, rule in recipe.weights.items() if isinstance(rule.update, Trained)
    }
    return {name: make_optimizer(weights, optim) for name, optim in {POLICY: recipe.optim, **of_sets}.items()}


def fit_companions(
    recipe: Recipe,
    policy: Policy,
    optimizers: Optimizers,
    forest: Forest,
    processes: Processes,
    iteration: int,
) -> Metrics:
    """Let the sets that learn take their steps on this iteration's samples."""
    losses = {}
    for name, rule in recipe.weights.items():
        if not isinstance(rule.update, Trained):
            continue
        optim = rule.update.optim
        turns, levels = optim.updates_per_iteration, rule.update.sigmas
        ones = forest.advantages(torch.ones(len(forest.leaves), 1))
        drawn = levels.model_copy(update={"num_sigmas": levels.num_sigmas * turns})
        rows = samples(forest, ones, drawn, seed=recipe.seed, iteration=iteration)
        # A sample's levels are in order: samples that begin at different ones give every turn some of all.
        turn_of = (rows.step + rows.prompt_slot + rows.seed_group + rows.sample) % turns
        total = 0.0
        for turn in range(turns):
            part = rows.index(turn_of == turn)
            count = torch.tensor([len(part)], dtype=torch.float64)
            processes.add([count])
            share = 1 / float(count)
            with policy.weights.use(name):
                done = backward(
                    FLOW_MATCHING, policy, part, forest.condition, optim.micro_batch, share, processes
                )
                taken = iteration * turns + turn
                update(policy.weights, optimizers[name], optim, processes, taken)
            loss = torch.tensor([done.totals.get("loss", 0.0) * share], dtype=torch.float64)
            processes.add([loss])
            total += float(loss) / turns
        losses[f"fit/{name}"] = total
    return losses
