"""What cannot be chosen, replayed or trained on as it was drawn."""

import torch

from thalweg.objectives import Balance, ChunkRatio, ClippedRatio
from thalweg.rollout import AllSteps, Deterministic, Tree, Window
from thalweg.training.recipe.checks.densities import ON_PATH
from thalweg.training.recipe.schema import Recipe


def selection(recipe: Recipe) -> list[str]:
    """What cannot be chosen, replayed or trained on as it was drawn."""
    rollout, objective, chosen, problems = recipe.rollout, recipe.objective, recipe.selection, []
    on_path = isinstance(objective, ON_PATH)
    of_steps = {
        "step_weight": chosen.step_weight != "uniform",
        "sigma_min": chosen.sigma_min > 0,
        "depth_prune": chosen.depth_prune is not None,
        "width_prune": chosen.width_prune != "none",
        "equal_levels": chosen.equal_levels,
    }
    problems += [
        f"selection.{name}: acts on trained steps, and objective '{objective.kind}' trains whole "
        "samples; leave it out"
        for name, is_set in of_steps.items()
        if is_set and not on_path
    ]
    if on_path and rollout.plan.stochastic:
        trained = torch.tensor(rollout.trained_steps(recipe.seed, 0))
        sigma = rollout.sigmas(recipe.seed, 0)[trained]
        if not chosen.keeps_step(trained, sigma, 0).any():
            problems.append(
                f"selection: sigma_min={chosen.sigma_min:g} and depth_prune leave out all trained steps "
                f"{trained.tolist()} of the first iteration; keep some"
            )
    if chosen.width_prune != "none" and not isinstance(rollout.plan, Tree):
        problems.append(
            f"selection.width_prune: prunes a tree, and the plan '{rollout.plan.kind}' grows none; "
            "leave it out"
        )
    if chosen.best_of is not None and chosen.best_of > rollout.group_size:
        problems.append(
            f"selection.best_of={chosen.best_of}: a prompt has only {rollout.group_size} samples; give fewer"
        )
    of_samples = {"best_of": chosen.best_of is not None, "trained_fraction": chosen.trained_fraction < 1}
    problems += [
        f"selection.{name}: chooses for each sample, and the samples of a tree share their steps; use "
        "width_prune or depth_prune, or another plan"
        for name, is_set in of_samples.items()
        if is_set and isinstance(rollout.plan, Tree)
    ]
    if isinstance(objective, ChunkRatio | Balance) and (
        chosen.trained_fraction < 1
        or chosen.sigma_min > 0
        or chosen.depth_prune is not None
        or not isinstance(rollout.plan, AllSteps | Window)
        or getattr(rollout.plan, "per_prompt", False)
    ):
        problems.append(
            f"objective.kind: '{objective.kind}' needs every sample to train the same steps in a row; "
            "use the plan all_steps or window, without per_prompt, and no selection of steps"
        )
    if recipe.replay is not None and not (
        isinstance(objective, ClippedRatio)
        and objective.old_log_prob == "recompute"
        and not objective.keeps_mean
    ):
        problems.append(
            "replay: rows of earlier iterations need log-probs computed again; use objective 'clipped_ratio' "
            "with old_log_prob=recompute, without the options that compare with the rollout's means"
        )
    if rollout.perturbation is not None and on_path:
        problems.append(
            "rollout.perturbation: samples are drawn under other conditions than training sees, so "
            "their steps have another density; use an objective over finished samples, such as nft "
            "(objective.kind=forward with rule.kind=implicit)"
        )
    if rollout.explore is not None and not isinstance(rollout.plan, Deterministic):
        problems.append(
            "rollout.explore: a sample can be drawn again from its initial noise alone only where no step is "
            "drawn; use the plan deterministic"
        )
    return problems
