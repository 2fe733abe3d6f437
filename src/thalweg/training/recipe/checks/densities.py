"""Objectives over drawn steps: the steps need densities."""

import torch

from thalweg.objectives import Balance, ChunkRatio, ClippedRatio, OnPolicyDistillation
from thalweg.training.recipe.schema import Recipe

ON_PATH = ClippedRatio | ChunkRatio | Balance | OnPolicyDistillation
"""Objectives over stored transitions."""


def densities(recipe: Recipe) -> list[str]:
    """What keeps the trained steps from having a density, or from filling the objective's chunks."""
    objective, rollout = recipe.objective, recipe.rollout
    trained = rollout.trained_steps(recipe.seed, 0)
    if not rollout.plan.stochastic or rollout.kernel is None:
        return [
            f"objective.kind: '{objective.kind}' needs the densities of drawn steps, and the plan "
            f"'{rollout.plan.kind}' draws none; choose another plan or objective"
        ]
    problems = []
    sigmas = rollout.sigmas(recipe.seed, 0)
    nowhere = torch.zeros(len(sigmas) - 1, 1)
    std = rollout.kernel.transition(nowhere, nowhere, sigmas[:-1], sigmas[1:]).std
    silent = [step for step in trained if not std[step] > 0]
    if silent:
        problems.append(
            f"rollout.kernel: '{rollout.kernel.kind}' draws step {silent[0]} without noise, so it has no "
            "density to train on; give a larger noise_level"
        )
    if isinstance(objective, ChunkRatio) and sum(objective.chunks) != len(trained):
        problems.append(
            f"objective.chunks={list(objective.chunks)} adds up to {sum(objective.chunks)} steps, but the "
            f"rollout trains {len(trained)}; make them equal"
        )
    return problems
