"""Rows in, updates out. Rows are split by whole units, the same way on any number of processes."""

import math

import torch

from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.core.processes import Processes
from thalweg.core.values import Condition, Metrics
from thalweg.models import Policy
from thalweg.objectives import ChunkRatio, ClippedRatio
from thalweg.training.backward import Report, backward, on_training_path
from thalweg.training.folder.checkpoint import State
from thalweg.training.optimise import update
from thalweg.training.pathwise import Judge
from thalweg.training.recipe.schema import Recipe
from thalweg.training.units import Rows, together
from thalweg.training.weight_rules import after_update

SKIPS_BEFORE_STOPPING = 3


def learn(
    recipe: Recipe,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    condition: Condition,
    processes: Processes,
    state: State,
    worth: Judge | None = None,
) -> Metrics:
    """Take the updates of an iteration; what to report of them."""
    optim, report, deviation, norms = recipe.optim, Report(), 0.0, list[float]()
    rows, corrected = on_training_path(
        recipe.objective, policy, rows, condition, optim.micro_batch, processes
    )
    unit = recipe.objective.unit
    whole = processes.gather({"unit": together(unit, rows)})["unit"].unique()
    order = whole[Address(recipe.seed, "order", state.iteration, path=(1,)).permutation(len(whole))]
    for chosen in order.tensor_split(optim.updates_per_iteration):
        part = rows.index(torch.isin(together(unit, rows), chosen))
        weight = part.weight.double().sum()[None]
        processes.add([weight])
        if float(weight) == 0:
            continue
        share = 1 / float(weight)
        done = backward(recipe.objective, policy, part, condition, optim.micro_batch, share, processes, worth)
        norm, taken = update(policy.weights, optimizer, optim, processes, state.updates)
        if not norms:
            deviation = done.ratio_deviation
        report.merge(done)
        norms.append(norm)
        state.updates += 1
        state.skipped_updates += not taken
        state.skipped_in_a_row = 0 if taken else state.skipped_in_a_row + 1
        if state.skipped_in_a_row == SKIPS_BEFORE_STOPPING:
            raise UserError(
                f"iteration {state.iteration + 1}: {SKIPS_BEFORE_STOPPING} updates in a row had a "
                "gradient that is "
                "not finite; lower optim.learning_rate and resume"
            )
        after_update(policy.weights, recipe.weights, state.updates)
    return (
        report.means(processes, deviation)
        | corrected
        | {
            "grad_norm": sum(norms) / max(len(norms), 1),
            "updates": len(norms),
        }
    )


def clip_metrics(recipe: Recipe, policy: Policy) -> Metrics:
    """The clip range in nats of the log-ratio summed over latents, for objectives that clip."""
    if not isinstance(recipe.objective, ClippedRatio | ChunkRatio):
        return {}
    elements = math.prod(policy.latent_shape)
    return {"clip_nats": recipe.objective.clip_of(elements) * elements}
