"""Objectives over finished samples: noise levels, noise and anchors."""

import math

from thalweg.credit import BlameCredit
from thalweg.objectives import Forward
from thalweg.objectives.rules import Weighted
from thalweg.objectives.sigma_draw import Grid
from thalweg.objectives.surrogate import ELBO_SIGMA_MIN
from thalweg.training.recipe.schema import Recipe


def forward(objective: Forward, recipe: Recipe) -> list[str]:
    """What keeps a forward objective from its noise levels, its noise or its anchors."""
    problems, sigmas = [], objective.sigmas
    if recipe.rollout.plan.stochastic and objective.noise == "rollout":
        problems.append(
            f"objective.noise='rollout': the plan '{recipe.rollout.plan.kind}' draws more noise than a "
            "sample starts from; use the plan deterministic, or noise=fresh"
        )
    if objective.corrective_weight > 0 and not isinstance(recipe.credit, BlameCredit):
        problems.append(
            f"objective.corrective_weight={objective.corrective_weight:g}: credit '{recipe.credit.kind}' "
            "corrects no sample; use credit {kind: blame}, or 0"
        )
    if objective.corrective_weight > 0 and objective.unit != "row":
        problems.append(
            f"objective.corrective_weight: corrected rows stand by themselves, and the rule "
            f"'{objective.rule.kind}' spans several; use implicit, weighted or residual, or 0"
        )
    if isinstance(sigmas, Grid):
        grid = recipe.rollout.sigmas(recipe.seed, 0)[:-1]
        levels = sigmas.candidates(len(grid))
        if sigmas.num_sigmas > len(levels):
            problems.append(
                f"objective.sigmas.num_sigmas={sigmas.num_sigmas}: the rollout has only {len(levels)} levels "
                "to draw from; give fewer, a larger noisy_fraction, or a smaller skip"
            )
        lowest = min((float(grid[at]) for at in levels), default=1.0)
        if objective.is_elbo and lowest < ELBO_SIGMA_MIN:
            problems.append(
                f"objective.surrogate.weighting='elbo' grows as 1/sigma, and the rollout has a level of "
                f"{lowest:.2g}; give a smaller noisy_fraction, so that all are {ELBO_SIGMA_MIN} or more"
            )
    return problems + _bounded(objective)


def _bounded(objective: Forward) -> list[str]:
    """Pulls too weak for the samples that weighted regression pushes away (AdvantageFlow, arXiv:2605.26013).

    In the surrogate's units a row's loss is (A + Σ (w + u A)) times a square, plus what is linear. With `old`
    the ratio of a sample that is pushed away goes to 0, which ends the push.
    """
    pulls, shaped, rule = objective.acting_pulls, objective.advantage, objective.rule
    lowest, highest = shaped.bounds
    if not isinstance(rule, Weighted) or rule.old is not None or not math.isfinite(highest - lowest):
        return []
    if any(pull.space != "surrogate" for pull in pulls):
        return []
    weight, slope = sum(pull.weight for pull in pulls), 1 + sum(pull.advantage_weight for pull in pulls)
    worst = min(slope * lowest, slope * highest)
    if worst >= 0 or weight + worst > 0:
        return []
    return [
        f"objective.pulls: a weight of {weight:g} in all, against advantages from {lowest:g} to {highest:g}, "
        "leaves the loss of some samples unbounded below; give pulls of more weight, a smaller "
        "advantage.limit, or advantage.side=positive"
    ]
