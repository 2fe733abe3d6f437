"""Is a recipe sound on this machine? One rollout, replayed and differentiated, without changing anything.

Shapes: B rows.
"""

from dataclasses import replace

import torch

from thalweg.core.errors import UserError
from thalweg.core.finding import Finding
from thalweg.core.processes import Processes
from thalweg.core.values import Transitions
from thalweg.models import DiffusersModel, Model
from thalweg.objectives import Balance, ChunkRatio, ClippedRatio
from thalweg.objectives.chunk_ratio import chunks_of, relative_change
from thalweg.rewards import finished, total, weights_of
from thalweg.training.backward import backward, recompute_log_probs
from thalweg.training.collect import collect, judge
from thalweg.training.data.prompts import draw_prompts, open_prompts
from thalweg.training.pathwise import judge_of
from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from thalweg.training.recipe.schema import Recipe


def examine(recipe: Recipe) -> list[Finding]:
    """Replay stored steps and differentiate the objective once; nothing is trained."""
    policy, alone = load_policy(recipe), Processes()
    plan = batch_plan(recipe, policy)
    prompts = open_prompts(recipe.data, recipe.model.world)
    before = policy.passes.evaluations
    forest = collect(recipe, policy, draw_prompts(prompts, recipe.data, recipe.seed, 0), alone, 0).forest
    passes = policy.passes.evaluations - before
    scores = judge(recipe, policy, forest)
    advantages = recipe.credit.assign(forest, scores, weights_of(recipe.rewards), alone)
    rows = recipe.objective.experience(forest, advantages, seed=recipe.seed, iteration=0)
    rows = replace(rows, weight=torch.ones(len(rows)))
    findings = [
        Finding("rollout passes", f"{passes}, planned {plan.rollout_passes}", passes == plan.rollout_passes),
        *_groups(recipe, forest.leaves, total(scores.leaves, finished(recipe.rewards))),
    ]
    if isinstance(rows, Transitions):
        findings += _replay(recipe, policy, rows, forest)
        if isinstance(recipe.objective, ChunkRatio):
            findings.append(_chunks(rows))
    worth = judge_of(recipe.rewards, forest.prompts)
    share, micro_batch = 1 / len(rows), recipe.optim.micro_batch
    backward(recipe.objective, policy, rows, forest.condition, micro_batch, share, alone, worth)
    silent = [n for n, p in policy.weights.parameters.items() if p.grad is None]
    findings.append(
        Finding(
            "parameters without gradient",
            f"{len(silent)} of {len(policy.weights.parameters)}",
            not silent,
            f"such as '{silent[0]}': the objective never reaches it" if silent else "",
        )
    )
    norm = torch.stack(
        [p.grad.norm() for p in policy.weights.parameters.values() if p.grad is not None]
    ).norm()
    findings.append(Finding("gradient norm", f"{float(norm):.3g}", bool(norm.isfinite())))
    return findings


def examine_model(model: Model) -> list[Finding]:
    """Look at a real model alone, without a recipe."""
    if not isinstance(model, DiffusersModel):
        raise UserError("doctor model=...: only diffusers pipelines are looked at alone; give a recipe")
    from thalweg.models.diffusers.doctor import examine_pipeline  # heavy

    return examine_pipeline(model)


def _groups(recipe: Recipe, leaves, reward) -> list[Finding]:
    groups = recipe.credit.groups(leaves)
    sizes = torch.bincount(groups)
    flat = sum(bool((reward[groups == g] == reward[groups == g][0]).all()) for g in range(len(sizes)))
    return [
        Finding(
            "group completeness",
            f"{len(sizes)} groups of {int(sizes.min())} to {int(sizes.max())}",
            bool(sizes.min() == sizes.max()) and int(sizes.min()) > 1,
            "" if int(sizes.min()) > 1 else "a group of one has no advantage; change credit.group_by",
        ),
        Finding(
            "groups without variance",
            f"{flat} of {len(sizes)}",
            flat <= len(sizes) / 2,
            ""
            if flat <= len(sizes) / 2
            else "half of the groups teach nothing; make groups larger or prompts harder",
        ),
    ]


def _chunks(rows: Transitions) -> Finding:
    """Where GCPO would cut, and the odds of its weighted sampling."""
    change = relative_change(rows)
    sizes = chunks_of(change)
    odds = [round(float(part.mean()), 4) for part in change.split(sizes)]
    shown = " ".join(f"{value:.3g}" for value in change.tolist())
    return Finding(
        "relative change of latents by step",
        f"{shown}; it turns after chunks={list(sizes)}, with chunk_weights={odds}",
        True,
    )


def _replay(recipe: Recipe, policy, rows: Transitions, forest) -> list[Finding]:
    objective = recipe.objective
    if not isinstance(objective, ClippedRatio | ChunkRatio | Balance):
        return []
    clip = objective.clip_range
    again = recompute_log_probs(objective, policy, rows, forest.condition, recipe.optim.micro_batch)
    single = recompute_log_probs(objective, policy, rows, forest.condition, 1)
    deviation = float((again - rows.old_log_prob).abs().max())
    floor = float((single - again).abs().max())
    advice = "set objective.old_log_prob=recompute, or a larger objective.clip_range"
    return [
        Finding(
            "ratio deviation",
            f"{deviation:.2g}, clip range {clip:.2g}",
            deviation <= 0.01 * clip,
            "" if deviation <= 0.01 * clip else advice,
        ),
        Finding(
            "noise floor between batch shapes",
            f"{floor:.2g}, clip range {clip:.2g}",
            floor <= 0.01 * clip,
            "" if floor <= 0.01 * clip else advice,
        ),
    ]
