"""Objectives over finished samples: noise levels, noise and anchors."""

from thalweg.objectives import Forward
from thalweg.objectives.sigma_draw import Grid
from thalweg.training.schema import Recipe


def forward(objective: Forward, recipe: Recipe) -> list[str]:
    """What keeps a forward objective from its noise levels, its noise or its anchors."""
    problems, sigmas = [], objective.sigmas
    if recipe.rollout.plan.stochastic and objective.noise == "rollout":
        problems.append(
            f"objective.noise='rollout': the plan '{recipe.rollout.plan.kind}' draws more noise than a "
            "sample starts from; use the plan deterministic, or noise=fresh"
        )
    if isinstance(sigmas, Grid):
        levels = len(sigmas.candidates(len(recipe.rollout.sigmas(recipe.seed, 0)) - 1))
        if sigmas.num_sigmas > levels:
            problems.append(
                f"objective.sigmas.num_sigmas={sigmas.num_sigmas}: the rollout has only {levels} levels to "
                "draw from; give fewer, a larger noisy_fraction, or a smaller skip"
            )
    return problems
