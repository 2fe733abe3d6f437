"""From rows to gradients, in as many network passes as fit at a time.

A loss term that spans one row, or a sample whose rows fit, is differentiated directly, micro-batch by
micro-batch. A term that spans more passes sees them through per-pass scalars u only, so two sweeps give its
exact gradient in the memory of one micro-batch:

    u without gradient for all rows  ->  dL/du  ->  back-propagate sum (dL/du) u, micro-batch by micro-batch

Units that may span processes (`training.units`) have the scalars of all processes gathered between the
sweeps; each process works the whole loss out and back-propagates through its own passes. Where a process's
rows fit one micro-batch their graph is kept, and one sweep does.

Shapes: B rows of this process, U units.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from thalweg.core.processes import Processes
from thalweg.core.values import (
    Condition,
    Metrics,
    Paths,
    Transitions,
    columns_of,
    with_latents_of,
    without_latents,
)
from thalweg.models.contract import Policy
from thalweg.models.sizes import by_size, sizes_in
from thalweg.objectives import ClippedRatio
from thalweg.objectives.contract import ObjectiveContract, PathwiseContract, Scalars
from thalweg.training.pathwise import Judge, field_at
from thalweg.training.units import WIDE, Rows


@dataclass
class Report:
    """Sums over units, to be averaged over processes, and the largest deviation of the recomputed log-
    prob.
    """

    totals: dict[str, float] = field(default_factory=dict)
    units: int = 0
    ratio_deviation: float = 0.0

    def include(self, terms: Tensor, columns: Mapping[str, Tensor]) -> None:
        self.units += len(terms)
        for name, column in {"loss": terms.detach(), **columns}.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(column.double().sum())

    def merge(self, other: "Report") -> None:
        """Include all that another report has seen."""
        self.units += other.units
        for name, value in other.totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def means(self, processes: Processes, ratio_deviation: float) -> Metrics:
        """Averages over the units of all processes, and the largest deviation on any of them."""
        # A process without rows has not seen what the others report.
        text = "".join(f"{name}\n" for name in ("loss", *self.totals))
        letters = processes.gather({"letters": torch.tensor(list(text.encode()), dtype=torch.uint8)})
        names = sorted(set(bytes(letters["letters"].tolist()).decode().split()))
        sums = torch.tensor(
            [float(self.units), *(self.totals.get(n, 0.0) for n in names)], dtype=torch.float64
        )
        processes.add([sums])
        deviation = processes.gather({"deviation": torch.tensor([ratio_deviation], dtype=torch.float64)})
        units = max(float(sums[0]), 1.0)
        means = {name: float(value) / units for name, value in zip(names, sums[1:], strict=True)}
        return means | {"ratio_deviation": float(deviation["deviation"].max())}


def measure(objective: ObjectiveContract, policy: Policy, rows: Rows, condition: Condition) -> Scalars:
    """The scalars of these passes. Passes without gradient come first: no weights may change while a graph is
    open.
    """
    x, sigma = objective.inputs(rows)
    if len(rows) == 0:  # no pass: the names of the scalars are all that is asked for
        return objective.measure(rows, x, x, dict.fromkeys(objective.anchors, x))
    here = condition.index(rows.condition)
    anchors = {}
    with torch.no_grad():
        for name in objective.anchors:
            with policy.weights.use(name):
                anchors[name] = policy.velocity(x, sigma, here)
    velocity = policy.velocity(x, sigma, here)
    if velocity.requires_grad:
        policy.passes.backwards += len(rows) * policy.passes_per_velocity
    # One number a pass: losses are worked out on the CPU, where the columns of the rows are.
    return {name: u.cpu() for name, u in objective.measure(rows, x, velocity, anchors).items()}


def backward(
    objective: ObjectiveContract | PathwiseContract,
    policy: Policy,
    rows: Rows,
    condition: Condition,
    micro_batch: int,
    share: float,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
    judge: Judge | None = None,
) -> Report:
    """Add to the gradients of the policy those of `share` times the sum of all loss terms; `judge` is the
    reward that a pathwise objective climbs.
    """
    report, wide = Report(), objective.unit in WIDE
    if len(rows) == 0 and not wide:
        return report
    sized = of_each_size(policy, rows, condition)
    parts = [(at, part) for at, own, _ in sized for part in _split(own, micro_batch)]
    if isinstance(objective, PathwiseContract):
        for at, part in parts:
            assert isinstance(part, Paths)
            terms, columns = objective.path_loss(field_at(at, condition, part, judge), part)
            report.include(terms, columns)
            policy.weights.backward(terms.sum() * share)
        return report
    if wide:
        # What spans samples is worked out over all of them, and reads no latents.
        in_order = rows.index(torch.cat([members for _, _, members in sized]))
        _sweep_twice(objective, parts, in_order, condition, share, processes, report)
        return report
    for at, own, _ in sized:
        whole = list(_split(own, micro_batch)) if objective.unit == "row" else _samples(own, micro_batch)
        for part in whole:
            scalars = measure(objective, at, part, condition)
            _deviation(report, scalars, part)
            terms, columns = objective.loss(scalars, part)
            report.include(terms, columns)
            policy.weights.backward(terms.sum() * share)
        if not whole:
            split = [(at, part) for part in _split(own, micro_batch)]
            _sweep_twice(objective, split, own, condition, share, None, report)
    return report


def of_each_size(
    policy: Policy, rows: Rows, condition: Condition
) -> list[tuple[Policy, Rows, Int64[Tensor, " _"]]]:
    """(the policy at a size, the rows of that size with latents in its shape, which rows those are)."""
    sized = by_size(policy, sizes_in(condition, rows.condition))
    if len(sized) == 1:
        at, members = sized[0]
        return [(at, with_latents_of(rows, at.latent_shape) if len(rows) else rows, members)]
    return [(at, with_latents_of(rows.index(own), at.latent_shape), own) for at, own in sized]


def _sweep_twice(
    objective: ObjectiveContract,
    parts: Sequence[tuple[Policy, Rows]],
    rows: Rows,
    condition: Condition,
    share: float,
    processes: Processes | None,
    report: Report,
) -> None:
    """The gradient of loss terms that span several of the parts, which are the rows in their order; with
    `processes`, of terms that span the rows of all of them.
    """
    with torch.set_grad_enabled(len(parts) == 1):
        swept = [measure(objective, at, part, condition) for at, part in parts]
    scalars = {name: torch.cat([s[name].detach() for s in swept]) for name in swept[0]}
    _deviation(report, scalars, rows)
    slopes = _slopes(objective, scalars, rows, share, processes, report)
    start = 0
    for at, part in parts:
        again = swept[0] if len(parts) == 1 else measure(objective, at, part, condition)
        end = start + len(part)
        steps = [(slopes[n][start:end] * again[n]).sum() for n in slopes if again[n].requires_grad]
        if steps:
            at.weights.backward(torch.stack(steps).sum())
        start = end


def _slopes(
    objective: ObjectiveContract,
    scalars: Scalars,
    rows: Rows,
    share: float,
    processes: Processes | None,
    report: Report,
) -> Scalars:
    """dL/du of this process's rows; with `processes`, L is the loss of the rows of all of them."""
    mine = torch.ones(len(rows), dtype=torch.bool)
    if processes is not None:
        columns = columns_of(rows) | {"rank": torch.full((len(rows),), processes.rank)}
        scalars, everyone = processes.gather(scalars), processes.gather(columns)
        mine = everyone.pop("rank") == processes.rank
        rows = without_latents(rows, everyone)
    inputs = {name: u.requires_grad_() for name, u in scalars.items()}
    terms, columns = objective.loss(inputs, rows)
    report.include(terms, columns)
    found = torch.autograd.grad(terms.sum() * share, list(inputs.values()), allow_unused=True)
    return {name: slope[mine] for name, slope in zip(inputs, found, strict=True) if slope is not None}


@torch.no_grad()
def recompute_log_probs(
    objective: ObjectiveContract, policy: Policy, rows: Rows, condition: Condition, micro_batch: int
) -> Tensor:
    """log p of every row under today's weights, on the training path."""
    sized = of_each_size(policy, rows, condition)
    found = [
        measure(objective, at, part, condition)["log_prob"]
        for at, own, _ in sized
        for part in _split(own, micro_batch)
    ]
    return torch.cat(found)[torch.cat([members for _, _, members in sized]).argsort()]


def on_training_path(
    objective: ObjectiveContract | PathwiseContract,
    policy: Policy,
    rows: Rows,
    condition: Condition,
    micro_batch: int,
    processes: Processes,
) -> tuple[Rows, Metrics]:
    """The rows as training sees them before its first update, and how far the rollout was from that: where
    the objective asks for it, log-probs computed again, and rows weighed by the difference.
    """
    if not isinstance(objective, ClippedRatio) or not isinstance(rows, Transitions):
        return rows, {}
    if objective.old_log_prob == "stored":
        return rows, {}
    if len(rows):
        rows = replace(
            rows, old_log_prob=recompute_log_probs(objective, policy, rows, condition, micro_batch)
        )
    gap = (rows.old_log_prob - rows.behaviour_log_prob).abs().double()
    sums = torch.tensor([float(gap.sum()), float(len(gap)), 0.0], dtype=torch.float64)
    if objective.correction is not None and len(rows):
        weight, keep = objective.correction.apply(rows)
        rows = replace(rows, advantages=rows.advantages * (weight * keep)[:, None])
        sums[2] = float((~keep).sum())
    processes.add([sums])
    count = max(float(sums[1]), 1.0)
    return rows, {"correction/gap": float(sums[0]) / count, "correction/rejected": float(sums[2]) / count}


def _split(rows: Rows, micro_batch: int) -> Iterator[Rows]:
    for part in torch.arange(len(rows)).split(micro_batch):
        yield rows.index(part)


def _samples(rows: Rows, micro_batch: int) -> list[Rows]:
    """Micro-batches of whole samples; none where one has more rows than fit."""
    sizes = torch.unique(rows.sample, return_counts=True)[1].tolist()
    packs, room = list[list[Tensor]](), 0
    for own in rows.sample.argsort(stable=True).split(sizes):
        if len(own) > micro_batch:
            return []
        if len(own) > room:
            packs.append([])
            room = micro_batch
        packs[-1].append(own)
        room -= len(own)
    return [rows.index(torch.cat(pack)) for pack in packs]


def _deviation(report: Report, scalars: Scalars, rows: Rows) -> None:
    if "log_prob" in scalars and isinstance(rows, Transitions) and len(rows):
        gap = (scalars["log_prob"].detach().cpu() - rows.old_log_prob).abs().max()
        report.ratio_deviation = max(report.ratio_deviation, float(gap))
