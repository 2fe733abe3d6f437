"""How much an iteration costs over the bare network passes it counts.

    python benchmarks/overhead.py [recipe ...] [key=value ...]

For each recipe: iterations are timed, and around each of them forward passes and forward-backward passes of
the same network at the same batch sizes. The median ratio of the two is printed, one JSON line a recipe. Both
are process CPU time of one thread within one run, because machines differ and other programs disturb.
"""

import json
import statistics
import sys
import time

import torch

from thalweg.core.processes import Processes
from thalweg.core.values import Condition
from thalweg.models import Policy
from thalweg.training.clock import Clock
from thalweg.training.companions import make_optimizers
from thalweg.training.data.prompts import load_prompts
from thalweg.training.folder.checkpoint import State
from thalweg.training.loop import iterate
from thalweg.training.policy import load_policy
from thalweg.training.recipe.load import load_recipe, recipe_names
from thalweg.training.recipe.schema import Recipe
from thalweg.training.replay import ReplayBuffer

ITERATIONS = 7
REPEATS = 5


def seconds_a_pass(policy: Policy, batch: int, with_gradient: bool, condition: Condition) -> float:
    """CPU seconds of one sample's pass in a batch of this size: the median of a few."""
    x, sigma = torch.randn(batch, *policy.latent_shape), torch.full((batch,), 0.5)
    here = condition.index(torch.zeros(batch, dtype=torch.int64))
    times = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        with torch.set_grad_enabled(with_gradient):
            velocity = policy.velocity(x, sigma, here)
            if with_gradient:
                velocity.square().mean().backward()
        times.append(time.process_time() - start)
    return statistics.median(times[1:]) / batch


def overhead(recipe: Recipe) -> dict[str, float]:
    """CPU seconds of an iteration, of the passes it counted, and their ratio: medians, with its extremes.

    The passes are measured right before and right after each iteration, so that what slows the machine for a
    while slows both.
    """
    policy, state = load_policy(recipe), State()
    optimizers, buffer = make_optimizers(policy.weights, recipe), ReplayBuffer()
    prompts = load_prompts(recipe.data.prompts, recipe.model.world)
    condition = policy.encode(prompts[:1])

    def bare() -> tuple[float, float]:
        forward = seconds_a_pass(policy, recipe.rollout.micro_batch, False, condition)
        with_gradient = seconds_a_pass(policy, recipe.optim.micro_batch, True, condition)
        for parameter in policy.weights.parameters.values():
            parameter.grad = None
        return forward, with_gradient

    iterate(recipe, policy, optimizers, prompts, Processes(), state, buffer, Clock())
    iterations, models, ratios = [], [], []
    before = bare()
    for _ in range(ITERATIONS):
        forwards, backwards = state.evaluations, state.backwards
        start = time.process_time()
        iterate(recipe, policy, optimizers, prompts, Processes(), state, buffer, Clock())
        iterations.append(time.process_time() - start)
        after = bare()
        with_gradient = state.backwards - backwards
        without = state.evaluations - forwards - with_gradient
        models.append(without * (before[0] + after[0]) / 2 + with_gradient * (before[1] + after[1]) / 2)
        ratios.append(iterations[-1] / models[-1])
        before = after
    return {
        "iteration": statistics.median(iterations),
        "model": statistics.median(models),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    changes = [argument for argument in sys.argv[1:] if "=" in argument]
    for name in [argument for argument in sys.argv[1:] if "=" not in argument] or recipe_names():
        print(json.dumps({"recipe": name, **overhead(load_recipe(name, changes))}), flush=True)
