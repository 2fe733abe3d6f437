"""What a recipe will cost, worked out before anything heavy starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models import Policy
from thalweg.objectives import ChunkRatio
from thalweg.objectives.contract import PathwiseContract, keeps_mean, keeps_states
from thalweg.training.data.sizes import of_all_sizes
from thalweg.training.given import inverts
from thalweg.training.recipe.schema import Recipe
from thalweg.training.units import WIDE
from thalweg.training.weight_rules import Trained


@dataclass(frozen=True)
class BatchPlan:
    """How an iteration divides over processes, micro-batches and updates."""

    prompts: int
    group_size: int
    processes: int
    roots_per_process: int
    """Of processes that share their samples, all have the same."""
    samples: int
    rollout_passes: int
    """Network passes of one sample that the rollout takes, over all processes."""
    gradient_passes: int
    """Passes with gradient, where no sample is dropped or pruned, each is corrected that the credit may
    correct, and none is replayed; their mean where chunks of several sizes are drawn.
    """
    other_passes: int
    """Passes of the update without gradient: anchors, first sweeps, log-probs computed again."""
    updates: int
    stored_bytes: int
    """States and conditions kept between rollout and update, on one process."""
    weight_bytes: int
    """Policy, its gradients and optimizer state, and all named weights, on one process."""
    depends_on_rewards: bool
    """Rewards may leave fewer passes in the update: of groups without variance, of samples not to correct.
    """

    @property
    def evaluations(self) -> int:
        """Forward passes of an iteration."""
        return self.rollout_passes + self.gradient_passes + self.other_passes


def batch_plan(
    recipe: Recipe, policy: Policy, processes: int = 1, prompts: Sequence[Prompt] = ()
) -> BatchPlan:
    """Solve the batch plan of the first iteration, for samples of the largest size; raises UserError where it
    does not come out even, or a prompt asks for a size that the model cannot make.
    """
    weights = sum(t.numel() * t.element_size() for t in policy.weights.tensors("policy").values())
    of_all = weights * (4 + len(recipe.weights)) // recipe.parallel.shards(processes)
    elements = max(math.prod(at.latent_shape) for at in of_all_sizes(recipe, policy, prompts))
    return plan_of(recipe, elements, policy.passes_per_velocity, of_all, processes)


def plan_of(
    recipe: Recipe, latent_elements: int, passes_per_velocity: int, weight_bytes: int, processes: int
) -> BatchPlan:
    """The batch plan of a model in numbers."""
    roots = recipe.data.prompts_per_iteration * recipe.rollout.num_starts
    ulysses, contexts = recipe.parallel.ulysses, recipe.parallel.contexts(processes)
    if roots % contexts:
        parts = f"{contexts} processes" if ulysses == 1 else f"{contexts} groups of {ulysses} processes"
        raise UserError(
            f"data.prompts_per_iteration={recipe.data.prompts_per_iteration} x "
            f"{recipe.rollout.num_starts} initial "
            f"noises do not split over {parts}: their product must be a multiple of {contexts}"
        )
    sigma = recipe.rollout.sigmas(recipe.seed, 0)[:-1]
    steps = recipe.selection.keeps_step(torch.arange(len(sigma)), sigma, 0).nonzero().flatten().tolist()
    prompts = recipe.data.prompts_per_iteration
    drawn, stored = recipe.rollout.passes(recipe.seed, 0, prompts)
    trained = recipe.rollout.passes(recipe.seed, 0, prompts, steps)[1]
    if inverts(recipe):
        drawn += prompts * len(recipe.rollout.given) * (len(sigma) - 1)
    passes = drawn * _passes_under(recipe, passes_per_velocity, recipe.rollout.weights)
    if recipe.rollout.explore is not None:
        explore = recipe.rollout.explore
        looks = len(recipe.rollout.solver.grid(recipe.rollout.schedule.sigmas(explore.steps))) - 1
        passes += prompts * explore.pool * looks * _passes_under(recipe, passes_per_velocity, explore.weights)
    samples = prompts * recipe.rollout.group_size
    levels = getattr(recipe.objective, "sigmas", None)
    corrects = getattr(recipe.objective, "corrective_weight", 0) > 0
    if levels is None:
        of_sample = trained / samples
        if recipe.selection.trained_fraction < 1:
            of_sample = max(1, int(recipe.selection.trained_fraction * of_sample))
        if isinstance(recipe.objective, ChunkRatio):
            # On average: chunks that are drawn differ in size.
            of_sample *= recipe.objective.chunks_per_sample / len(recipe.objective.chunks)
    else:
        # Corrected samples are rows too, at most as many as there are samples.
        of_sample = levels.num_sigmas * (2 if corrects else 1)
    unit, others_of_sample = recipe.objective.unit, dict[str, int]()
    if isinstance(recipe.objective, PathwiseContract):
        steps = len(recipe.rollout.sigmas(recipe.seed, 0)) - 1
        of_sample, others_of_sample = recipe.objective.passes(steps)
    # Of a prompt's samples, a pair is what a loss term depends on.
    trained_samples = 2 * prompts if unit == "pair" else samples
    rows, once = round(trained_samples * of_sample), passes_per_velocity
    anchors = sum(_passes_under(recipe, once, name) for name in recipe.objective.anchors)
    if recipe.selection.best_of is not None:
        rows = rows * min(recipe.selection.best_of, recipe.rollout.group_size) // recipe.rollout.group_size
    others = rows * anchors
    if isinstance(recipe.objective, PathwiseContract):
        others = samples * sum(
            count * _passes_under(recipe, once, name) for name, count in others_of_sample.items()
        )
    # What does not fit one micro-batch takes a second sweep, with the anchors' passes.
    if unit == "sample" and of_sample > recipe.optim.micro_batch:
        others += rows * (once + anchors)
    if unit in WIDE:
        parts = torch.arange(prompts).tensor_split(recipe.optim.updates_per_iteration)
        updates = (len(part) * (rows // prompts) // contexts for part in parts)
        others += sum(n * contexts for n in updates if n > recipe.optim.micro_batch) * (once + anchors)
    if getattr(recipe.objective, "old_log_prob", "stored") == "recompute":
        others += rows * (once + anchors)
    fitted = sum(
        rule.update.sigmas.num_sigmas * rule.update.optim.updates_per_iteration
        for rule in recipe.weights.values()
        if isinstance(rule.update, Trained)
    )
    of_edge = 3 if keeps_mean(recipe.objective) else 2
    states = of_edge * stored if levels is None else round(2 * samples * of_sample)
    if keeps_states(recipe.objective):
        of_ways = samples * len(recipe.rollout.sigmas(recipe.seed, 0))
        states = of_ways if isinstance(recipe.objective, PathwiseContract) else states + of_ways
    size = latent_elements * torch.float32.itemsize
    return BatchPlan(
        prompts=prompts,
        group_size=recipe.rollout.group_size,
        processes=processes,
        roots_per_process=roots // contexts,
        samples=samples,
        rollout_passes=passes,
        gradient_passes=(rows + samples * fitted) * once,
        other_passes=others,
        updates=recipe.optim.updates_per_iteration,
        stored_bytes=states * size // contexts,
        weight_bytes=weight_bytes,
        depends_on_rewards=corrects or unit == "pair" or recipe.selection.drop_zero,
    )


def _passes_under(recipe: Recipe, passes_per_velocity: int, name: str) -> int:
    """Network passes behind one velocity of named weights."""
    rule = recipe.weights.get(name)
    if rule is None or rule.guidance_scale is None:
        return passes_per_velocity
    return 1 if rule.guidance_scale == 1 else 2
