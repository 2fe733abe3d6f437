"""What a recipe will cost, worked out before anything heavy starts."""

import math
from dataclasses import dataclass

import torch

from thalweg.core.errors import UserError
from thalweg.models import Policy
from thalweg.training.recipe import Recipe


@dataclass(frozen=True)
class BatchPlan:
    """How an iteration divides over processes, micro-batches and updates."""

    prompts: int
    group_size: int
    processes: int
    roots_per_process: int
    samples: int
    rollout_passes: int
    """Network passes of one sample that the rollout takes, over all processes."""
    trained_rows: int
    """Rows that get a pass with gradient, where none is dropped."""
    anchor_passes: int
    updates: int
    stored_bytes: int
    """States and conditions kept between rollout and update, on one process."""
    weight_bytes: int
    """Policy, its gradients and optimizer state, and all named weights."""

    @property
    def evaluations(self) -> int:
        """Forward passes of an iteration."""
        return self.rollout_passes + self.trained_rows + self.anchor_passes


def batch_plan(recipe: Recipe, policy: Policy, processes: int = 1) -> BatchPlan:
    """Solve the batch plan of the first iteration; raises UserError where it does not come out even."""
    roots = recipe.data.prompts_per_iteration * recipe.rollout.num_roots
    if roots % processes:
        raise UserError(
            f"data.prompts_per_iteration={recipe.data.prompts_per_iteration} x "
            f"{recipe.rollout.num_roots} initial "
            f"noises do not split over {processes} processes: their product must be a multiple of {processes}"
        )
    passes, trained = recipe.rollout.passes_per_prompt(recipe.seed, 0)
    samples = recipe.data.prompts_per_iteration * recipe.rollout.group_size
    levels = getattr(recipe.objective, "sigmas", None)
    rows = trained * recipe.data.prompts_per_iteration if levels is None else samples * levels.num_sigmas
    if levels is None:
        rows = int(rows * recipe.credit.trained_fraction)
    sweeps = 1 if recipe.objective.unit == "row" else 2
    states = 2 * trained * recipe.data.prompts_per_iteration if levels is None else 2 * rows
    size = math.prod(policy.latent_shape) * torch.float32.itemsize
    weights = sum(t.numel() * t.element_size() for t in policy.weights.tensors("policy").values())
    return BatchPlan(
        prompts=recipe.data.prompts_per_iteration,
        group_size=recipe.rollout.group_size,
        processes=processes,
        roots_per_process=roots // processes,
        samples=samples,
        rollout_passes=passes * recipe.data.prompts_per_iteration * policy.passes_per_velocity,
        trained_rows=rows,
        anchor_passes=rows * (len(recipe.objective.anchors) + sweeps - 1) * policy.passes_per_velocity,
        updates=recipe.optim.updates_per_iteration,
        stored_bytes=states * size // processes,
        weight_bytes=weights * (4 + len(recipe.weights)),
    )
