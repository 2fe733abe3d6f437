"""The training loop: collect, judge, credit, learn. Every noun is a value that can be printed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thalweg.core.denormals import flushed_denormals
from thalweg.core.forest import Leaves
from thalweg.core.noise import Address
from thalweg.core.processes import Processes, connect, disconnect
from thalweg.core.values import Condition, Metrics, Prompt, Transitions
from thalweg.evaluation.report import write_report
from thalweg.models import POLICY, EncodesAhead, Policy
from thalweg.rewards import close_rewards, open_rewards, require_finite, weights_of, without_infinite
from thalweg.rewards.world import WorldReward
from thalweg.training.clock import Clock
from thalweg.training.collect import Grows, agreement, collect, grow_here, judge
from thalweg.training.companions import Optimizers, fit_companions, make_optimizers
from thalweg.training.contrast import is_said, without_contrast
from thalweg.training.data.prompts import (
    PromptStream,
    draw_prompts,
    held_out_prompts,
    open_prompts,
    require_judged,
)
from thalweg.training.distribution.launch import require_alike
from thalweg.training.distribution.parallel import place
from thalweg.training.distribution.workers import growing
from thalweg.training.evaluate import evaluate, summarise, summarise_steps
from thalweg.training.folder import checkpoint
from thalweg.training.folder.checkpoint import State
from thalweg.training.folder.run import RunFolder, command_line, default_folder
from thalweg.training.folder.trackers import Trackers, require_installed
from thalweg.training.learn import clip_metrics, learn
from thalweg.training.memory import peak_megabytes
from thalweg.training.pathwise import judge_of
from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from thalweg.training.recipe.schema import Recipe
from thalweg.training.replay import ReplayBuffer, mixed
from thalweg.training.stop import StopRequest
from thalweg.training.units import Rows, needed
from thalweg.training.weight_rules import after_iteration

Progress = Callable[[str, dict[str, Any]], None]
"""(event, line) -> None: told of every line that goes to metrics.jsonl."""


@dataclass(frozen=True)
class Run:
    """What a training leaves behind."""

    path: Path
    iteration: int
    """Iterations done."""
    finished: bool
    """False where it was stopped before the recipe's last iteration."""


def train(recipe: Recipe, out: str | Path | None = None, progress: Progress | None = None) -> Run:
    """Train in a new folder (`out`, or runs/<recipe>-<time>) and write its report."""
    processes = connect()
    try:
        path = Path(processes.agree(str(out or default_folder(recipe.name))))
        folder = RunFolder(path, processes.is_first)
        folder.require_new()
        return _run(recipe, folder, processes, progress, is_new=True)
    finally:
        close_rewards(recipe.rewards)
        disconnect(processes)


def resume(path: str | Path, recipe: Recipe, progress: Progress | None = None) -> Run:
    """Continue the run of that folder from its last whole checkpoint, or from the start if it has none."""
    processes = connect()
    try:
        return _run(recipe, RunFolder(Path(path), processes.is_first), processes, progress, is_new=False)
    finally:
        close_rewards(recipe.rewards)
        disconnect(processes)


def _run(
    recipe: Recipe, folder: RunFolder, processes: Processes, progress: Progress | None, *, is_new: bool
) -> Run:
    require_alike(processes, recipe)
    prompts = open_prompts(recipe.data, recipe.model.world)
    held_out = held_out_prompts(recipe.data, recipe.evaluation, recipe.model.world, prompts)
    judges = {reward.world for reward in recipe.rewards if isinstance(reward, WorldReward)}
    own = set() if recipe.model.world is None else {recipe.model.world}
    if not isinstance(prompts, PromptStream):  # an embedded world's are never one
        draws = own if recipe.rollout.given else set()  # it reads what its judge does
        require_judged(prompts, judges | draws, "data.prompts", by_task=False)
    require_judged(held_out, judges | own, "evaluation.prompts", by_task=True)
    known = held_out if isinstance(prompts, PromptStream) else [*prompts, *held_out]
    open_rewards(recipe.rewards, known)
    require_installed(recipe)
    policy = load_policy(recipe, is_saved=bool(checkpoint.complete(folder.checkpoints)))
    batch_plan(recipe, policy, processes.total, known)  # refuses what cannot be, before anything is written
    processes = place(policy, recipe.parallel, processes, held_out[0])
    optimizers = make_optimizers(policy.weights, recipe)
    lock = folder.locked(is_new=is_new)
    with growing(recipe, prompts) as grows, lock, flushed_denormals(), StopRequest() as stop:
        if is_new:
            folder.start(recipe, command_line())
        processes.wait()
        buffer = ReplayBuffer()
        state = _restore(recipe, folder, policy, optimizers, buffer)
        folder.write_recipe(recipe)  # only now: overrides that do not fit leave the run as it was
        clock, trackers = Clock(), Trackers(recipe, folder.path if folder.writes else None)
        stop.start_counting(state.seconds)

        def log(event: str, values: dict[str, Any]) -> None:
            passes = {"evaluations": state.evaluations, "backwards": state.backwards}
            line = {"iteration": state.iteration, "seconds": stop.seconds(), **passes, **values}
            folder.log(event, line)
            trackers.log(event, line)
            if progress is not None and folder.writes:
                progress(event, line)

        if isinstance(policy, EncodesAhead) and not isinstance(prompts, PromptStream):
            ahead = policy.encode_ahead(known)
            log("encoded", ahead) if ahead else None
        if state.iteration == 0:
            log("eval", evaluate(recipe, policy, held_out, folder, processes, state, clock))
        stopping = state.iteration >= recipe.iterations
        while not stopping:
            started, cpu_started = stop.seconds(), time.process_time()
            metrics, equal = iterate(
                recipe, policy, optimizers, prompts, processes, state, buffer, clock, grows
            )
            state.cpu_seconds += time.process_time() - cpu_started
            spent = {"time/cpu": state.cpu_seconds}
            speed = {"samples_per_second": metrics["samples"] / (stop.seconds() - started)}
            log(
                "train",
                metrics | clock.read() | spent | speed | {"memory/peak_mb": peak_megabytes(policy.device)},
            )
            if equal is not None and is_said(state.equal_in_a_row):
                log("warning", {"text": equal, "in_a_row": state.equal_in_a_row})
            ended = processes.any(_is_spent(recipe, state, stop.seconds()))
            if ended or (recipe.evaluation.every and state.iteration % recipe.evaluation.every == 0):
                log("eval", evaluate(recipe, policy, held_out, folder, processes, state, clock))
            # Asked once: a request that arrives from here on takes one more iteration, and saves it.
            stopping = ended or processes.any(stop.requested())
            is_best = recipe.run.keep_best and state.best_iteration == state.iteration
            if stopping or is_best or state.iteration % recipe.run.save_every == 0:
                with clock.stage("save"):
                    _save(recipe, folder, state, policy, optimizers, buffer, stop.seconds(), processes)
                processes.wait()
        trackers.close()
        if folder.writes:
            write_report(folder.path)
    return Run(folder.path, state.iteration, state.iteration >= recipe.iterations)


def iterate(
    recipe: Recipe,
    policy: Policy,
    optimizers: Optimizers,
    prompts: Sequence[Prompt] | PromptStream,
    processes: Processes,
    state: State,
    buffer: ReplayBuffer,
    clock: Clock,
    grows: Grows = grow_here,
) -> tuple[Metrics, str | None]:
    """One iteration: what `train` does again and again, and why it taught nothing, where that is so. Leaves
    `state` one further.
    """
    before = (policy.passes.evaluations, policy.passes.backwards, policy.weights.padded_passes)
    with clock.stage("rollout"):
        asked = draw_prompts(prompts, recipe.data, recipe.seed, state.iteration)
        collected = collect(recipe, policy, asked, processes, state.iteration, grows)
        forest = collected.forest
    with clock.stage("reward"):
        scores = judge(recipe, policy, forest, processes)
        if recipe.run.invalid_rewards == "raise":
            require_finite(scores.leaves, forest.leaf_prompts)
            require_finite(scores.probes, forest.probe_prompts)
        scores = without_infinite(scores)
    with clock.stage("credit"):
        advantages = recipe.credit.assign(forest, scores, weights_of(recipe.rewards), processes)
        rows = recipe.objective.experience(forest, advantages, seed=recipe.seed, iteration=state.iteration)
        everyone = processes.gather(vars(forest.leaves) | scores.leaves)
        leaves = Leaves(**{name: everyone.pop(name) for name in vars(forest.leaves)})
        equal = without_contrast(recipe, rows, everyone, leaves, asked, processes)
        rows = recipe.selection.select(rows, seed=recipe.seed, iteration=state.iteration, processes=processes)
        rows = needed(recipe.objective.unit, rows, processes)
    with clock.stage("update"):
        rows, condition = with_replayed(recipe, rows, forest.condition, buffer, processes, state.iteration)
        worth = judge_of(recipe.rewards, forest.prompts)
        fitted = fit_companions(recipe, policy, optimizers, forest, processes, state.iteration)
        learned = learn(recipe, policy, optimizers[POLICY], rows, condition, processes, state, worth)
    state.iteration += 1
    state.equal_in_a_row = 0 if equal is None else state.equal_in_a_row + 1
    after_iteration(policy.weights, recipe.weights, state.iteration, state.updates)
    after = (policy.passes.evaluations, policy.passes.backwards, policy.weights.padded_passes)
    passes = torch.tensor(after) - torch.tensor(before)
    processes.add([passes])
    state.evaluations += int(passes[0])
    state.backwards += int(passes[1])
    metrics = {
        **summarise(recipe, everyone, leaves),
        **summarise_steps(scores, processes),
        **agreement(collected, scores.leaves, recipe.rewards, processes),
        **learned,
        **fitted,
        "skipped_updates": state.skipped_updates,
        **clip_metrics(recipe, policy),
        "padded_passes": int(passes[2]),
        "processes": processes.total,
        "samples": len(leaves),
        "samples_local": len(forest.leaves),
    }
    return metrics, equal


def with_replayed(
    recipe: Recipe,
    rows: Rows,
    condition: Condition,
    buffer: ReplayBuffer,
    processes: Processes,
    iteration: int,
) -> tuple[Rows, Condition]:
    """The rows and some of earlier iterations, where the recipe replays; today's best go into the buffer."""
    if recipe.replay is None or not isinstance(rows, Transitions):
        return rows, condition
    fresh = processes.gather({"sample": rows.sample})["sample"].unique()
    draw = Address(recipe.seed, "selection", iteration, path=(4,))
    again, given = buffer.draw(int(recipe.replay.fraction * len(fresh)), draw, processes, len(condition))
    buffer.admit(rows, condition, recipe.replay, iteration, processes)
    return mixed(rows, condition, again, given)


def _is_spent(recipe: Recipe, state: State, seconds: float) -> bool:
    """Whether the run has had all that its recipe gives it."""
    time_limit, cpu_limit = recipe.run.max_seconds, recipe.run.max_cpu_seconds
    return (
        state.iteration >= recipe.iterations
        or (time_limit is not None and seconds >= time_limit)
        or (cpu_limit is not None and state.cpu_seconds >= cpu_limit)
    )


def _restore(
    recipe: Recipe,
    folder: RunFolder,
    policy: Policy,
    optimizers: Optimizers,
    buffer: ReplayBuffer,
) -> State:
    done = checkpoint.complete(folder.checkpoints)
    with torch.no_grad():
        state = checkpoint.load(done[-1], policy.weights, optimizers) if done else State()
    if done and recipe.replay is not None:
        buffer.restore(checkpoint.replayed(done[-1]), policy.latent_shape, str(done[-1]))
    folder.forget_after(state.iteration if done else -1)
    if state.iteration < recipe.iterations:
        folder.forget_evaluations_between(recipe.evaluation.every)
    return state


def _save(
    recipe: Recipe,
    folder: RunFolder,
    state: State,
    policy: Policy,
    optimizers: Optimizers,
    buffer: ReplayBuffer,
    seconds: float,
    processes: Processes,
) -> None:
    state.seconds, held = seconds, buffer.tensors()
    checkpoint.save(folder.checkpoints, state, policy.weights, optimizers, recipe.name, held, processes)
    if folder.writes:
        best = state.best_iteration if recipe.run.keep_best else None
        checkpoint.prune(folder.checkpoints, recipe.run.keep_last, best)
