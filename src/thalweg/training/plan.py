"""What a recipe will cost, worked out before anything heavy starts."""

import math
from dataclasses import dataclass

import torch

from thalweg.core.errors import UserError
from thalweg.models import Policy
from thalweg.training.recipe import Recipe
from thalweg.training.units import WIDE


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
    gradient_passes: int
    """Passes with gradient, where no row is dropped."""
    other_passes: int
    """Passes of the update without gradient: anchors, first sweeps, log-probs computed again."""
    updates: int
    stored_bytes: int
    """States and conditions kept between rollout and update, on one process."""
    weight_bytes: int
    """Policy, its gradients and optimizer state, and all named weights."""

    @property
    def evaluations(self) -> int:
        """Forward passes of an iteration."""
        return self.rollout_passes + self.gradient_passes + self.other_passes


def batch_plan(recipe: Recipe, policy: Policy, processes: int = 1) -> BatchPlan:
    """Solve the batch plan of the first iteration; raises UserError where it does not come out even."""
    weights = sum(t.numel() * t.element_size() for t in policy.weights.tensors("policy").values())
    of_all = weights * (4 + len(recipe.weights))
    return plan_of(recipe, math.prod(policy.latent_shape), policy.passes_per_velocity, of_all, processes)


def plan_of(
    recipe: Recipe, latent_elements: int, passes_per_velocity: int, weight_bytes: int, processes: int
) -> BatchPlan:
    """The batch plan of a model in numbers."""
    roots = recipe.data.prompts_per_iteration * recipe.rollout.num_roots
    if roots % processes:
        raise UserError(
            f"data.prompts_per_iteration={recipe.data.prompts_per_iteration} x "
            f"{recipe.rollout.num_roots} initial "
            f"noises do not split over {processes} processes: their product must be a multiple of {processes}"
        )
    passes, trained = recipe.rollout.passes(recipe.seed, 0, recipe.data.prompts_per_iteration)
    if recipe.rollout.explore is not None:
        explore = recipe.rollout.explore
        looks = len(recipe.rollout.solver.grid(recipe.rollout.schedule.sigmas(explore.steps))) - 1
        passes += recipe.data.prompts_per_iteration * explore.pool * looks
    samples = recipe.data.prompts_per_iteration * recipe.rollout.group_size
    levels = getattr(recipe.objective, "sigmas", None)
    if levels is None:
        of_sample = trained / samples
        if recipe.selection.trained_fraction < 1:
            of_sample = max(1, int(recipe.selection.trained_fraction * of_sample))
    else:
        of_sample = levels.num_sigmas
    unit = recipe.objective.unit
    # Of a prompt's samples, a pair is what a loss term depends on.
    trained_samples = 2 * recipe.data.prompts_per_iteration if unit == "pair" else samples
    rows, anchors = round(trained_samples * of_sample), len(recipe.objective.anchors)
    if recipe.selection.best_of is not None:
        rows = rows * min(recipe.selection.best_of, recipe.rollout.group_size) // recipe.rollout.group_size
    others = rows * anchors
    # What does not fit one micro-batch takes a second sweep, with the anchors' passes.
    if unit == "sample" and of_sample > recipe.optim.micro_batch:
        others += rows * (1 + anchors)
    if unit in WIDE:
        prompts = torch.arange(recipe.data.prompts_per_iteration)
        parts = prompts.tensor_split(recipe.optim.updates_per_iteration)
        updates = (len(part) * (rows // len(prompts)) // processes for part in parts)
        others += sum(n * processes for n in updates if n > recipe.optim.micro_batch) * (1 + anchors)
    if getattr(recipe.objective, "old_log_prob", "stored") == "recompute":
        others += rows * (1 + anchors)
    of_edge = 3 if recipe.objective.keeps_mean else 2
    states = of_edge * trained if levels is None else round(2 * samples * of_sample)
    size = latent_elements * torch.float32.itemsize
    return BatchPlan(
        prompts=recipe.data.prompts_per_iteration,
        group_size=recipe.rollout.group_size,
        processes=processes,
        roots_per_process=roots // processes,
        samples=samples,
        rollout_passes=passes * passes_per_velocity,
        gradient_passes=rows * passes_per_velocity,
        other_passes=others * passes_per_velocity,
        updates=recipe.optim.updates_per_iteration,
        stored_bytes=states * size // processes,
        weight_bytes=weight_bytes,
    )
