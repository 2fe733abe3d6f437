"""Objectives that differentiate along the flow."""

from typing import Any

from thalweg.flow import Euler, LearnedVariance
from thalweg.objectives import (
    AdjointMatching,
    AdjointMatchingODE,
    DistributionMatching,
    RewardGradient,
    ScoreMatching,
    TrajectoryShaping,
)
from thalweg.objectives.adjoint import memory_of_noise
from thalweg.objectives.routes import LastSteps, Leap
from thalweg.rollout import AllSteps
from thalweg.training.recipe.schema import Recipe

MOST_MEMORY = 0.05
"""Correlation of a sample with its initial noise up to which a kernel counts as memoryless."""


def pathwise(objective: Any, recipe: Recipe) -> list[str]:
    """What keeps a pathwise objective from its states, its sampling steps or the reward's gradient."""
    problems, rollout, kind = [], recipe.rollout, objective.kind
    if objective.reads_reward:
        problems += [
            f"rewards: '{reward.name}' has no gradient, and objective '{kind}' learns from nothing else; "
            "use rewards that have one, such as {kind: scorer}"
            for reward in recipe.rewards
            if not getattr(reward, "differentiable", False)
        ]
    if not isinstance(rollout.solver, Euler):
        problems.append(
            f"rollout.solver: '{rollout.solver.kind}', and objective '{kind}' takes the steps of euler up "
            "again; use euler"
        )
    if not isinstance(objective, AdjointMatching) and rollout.plan.stochastic:
        problems.append(
            f"objective.kind: '{kind}' follows the flow, and the plan '{rollout.plan.kind}' draws steps; use "
            "the plan deterministic"
        )
    steps = len(rollout.sigmas(recipe.seed, 0)) - 1
    starts_below = float(rollout.sigmas(recipe.seed, 0)[0]) < 1
    if isinstance(objective, DistributionMatching) and objective.diversity is not None and starts_below:
        problems.append(
            "objective.diversity: its teacher starts at σ = 1, and rollout.schedule "
            f"'{rollout.schedule.kind}' starts below; leave it out, or take a schedule that starts at 1"
        )
    place, last = "objective", objective
    if isinstance(objective, RewardGradient):
        place, last = "objective.route", objective.route
        if isinstance(last, Leap) and steps < 2:
            problems.append(f"rollout.steps={steps}: two leaps start from two steps; give 2 or more")
    if (
        isinstance(
            last, LastSteps | AdjointMatchingODE | DistributionMatching | ScoreMatching | TrajectoryShaping
        )
        and (last.num_steps or 0) > steps
    ):
        problems.append(
            f"{place}.num_steps={last.num_steps}: the rollout has only {steps} steps; give at most as many"
        )
    if isinstance(objective, DistributionMatching) and objective.diversity is not None and steps < 2:
        problems.append(
            f"rollout.steps={steps}: with objective.diversity the first step is not matched; give 2 or more"
        )
    if isinstance(objective, AdjointMatching):
        problems += _memoryless(objective, recipe)
    return problems


def _memoryless(objective: AdjointMatching, recipe: Recipe) -> list[str]:
    """What ties a sample to its initial noise, which would bias the density that adjoint matching ends in."""
    rollout, problems = recipe.rollout, []
    kernel, sigmas = rollout.kernel, rollout.sigmas(recipe.seed, 0)
    if not isinstance(rollout.plan, AllSteps) or kernel is None or isinstance(kernel, LearnedVariance):
        return [
            "objective.kind: 'adjoint_matching' needs every step but the last drawn, by a kernel of known "
            "noise; use the plan all_steps, kernel {kind: ddim}"
        ]
    if objective.num_steps > len(sigmas) - 2:
        problems.append(
            f"objective.num_steps={objective.num_steps}: the rollout draws only {len(sigmas) - 2} steps; "
            "give fewer"
        )
    memory = memory_of_noise(kernel, sigmas)
    if abs(memory) > MOST_MEMORY:
        problems.append(
            f"rollout.kernel: '{kernel.kind}' leaves a correlation of {memory:.2f} between samples and their "
            "initial noise, which biases adjoint matching; use {kind: ddim, noise_level: 1}, which forgets it"
        )
    return problems
