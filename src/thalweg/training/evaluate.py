"""Is it better? Measurements of the policy in a run, and of an iteration's own samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Metrics, Prompt
from thalweg.evaluation import measure, sheet
from thalweg.models import Policy
from thalweg.rewards import finished, total
from thalweg.training.clock import Clock
from thalweg.training.folder.checkpoint import State
from thalweg.training.folder.run import RunFolder
from thalweg.training.recipe.schema import Recipe
from thalweg.worlds import find_world


def evaluate(
    recipe: Recipe,
    policy: Policy,
    held_out: Sequence[Prompt],
    folder: RunFolder,
    processes: Processes,
    state: State,
    clock: Clock,
) -> Metrics:
    """Measure the policy; its passes are not counted as training."""
    with clock.stage("evaluate"):
        before = replace(policy.passes)
        settings, name = recipe.evaluation, recipe.model.world
        world = None if name is None else find_world(name)
        prompts = measure.spread(held_out, settings.num_prompts)
        metrics = measure.measure(policy, prompts, recipe.rewards, world, settings, processes)
        if settings.diversity_prompts:
            few = measure.spread(held_out, settings.diversity_prompts)
            images = measure.sample_groups(policy, few, settings, processes, recipe.rewards)
            if folder.writes:
                sheet.save_sheet(
                    folder.path / "samples", state.iteration, images, few, settings.diversity_group
                )
            processes.wait()
            base = sheet.load_base(folder.path / "samples")
            metrics |= measure.watch(images, images if base is None else base, world, settings)
        policy.passes.evaluations = before.evaluations
        best = metrics.get("accuracy", metrics["reward"])
        if state.iteration and (state.best is None or best > state.best):
            state.best, state.best_iteration = best, state.iteration
    return metrics


def summarise(recipe: Recipe, scores: Mapping[str, Float[Tensor, " B"]], leaves: Leaves) -> Metrics:
    """What an iteration's rewards say, over all processes, of the model's own samples where it makes some."""
    reward = total(scores, finished(recipe.rewards)).double()
    groups = recipe.credit.groups(leaves)
    valid = ~reward.isnan()
    flat = [not bool((reward[(groups == g) & valid].diff() != 0).any()) for g in range(int(groups.max()) + 1)]
    own = leaves.seed_group >= (len(recipe.rollout.given) if recipe.rollout.num_drawn else 0)
    reward, valid = reward[own], valid[own]
    return {
        "reward": float(reward[valid].mean()),
        **{f"reward/{name}": float(values[own].double().nanmean()) for name, values in scores.items()},
        "reward_std": float(reward[valid].std(correction=0)),
        "zero_variance_fraction": sum(flat) / len(flat),
        "invalid_rewards": int((~valid).sum()),
    }


def summarise_steps(scores: Scores, processes: Processes) -> Metrics:
    """What judges of noisy states say of those that trained steps lead to, over all processes."""
    metrics = {}
    for name, levels in scores.steps.items():
        values = torch.cat(levels).double()
        known = values[values.isfinite()]
        summed = torch.stack([known.sum(), known.new_tensor(len(known))])
        processes.add([summed])
        if summed[1]:
            metrics[f"reward/{name}/steps"] = float(summed[0] / summed[1])
    return metrics
