"""Samples of earlier iterations, trained on again (OP-GRPO, arXiv:2604.04142).

The paper's equations are not public; our reading: the better samples of a group are kept with the advantage
they had among their own group, under whose weights they were drawn; later updates mix some of them in, with
log-probs recomputed under today's weights before the update (`objective.old_log_prob: recompute`) and weighed
by how far those are from the stored ones (`objective.correction`).

The buffer holds samples of all processes on each of them, so that a run does not depend on their number.
Shapes: B rows.
"""

import math
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.processes import Processes
from thalweg.core.sizes import stacked
from thalweg.core.values import SIZE, Condition, Transitions, joined, padded


class Replay(Part):
    """The `replay` section of a recipe."""

    fraction: float = Field(default=0.33, gt=0)
    """Replayed samples for each fresh one, as far as there are any."""
    max_age: PositiveInt = 5
    """Iterations after which a sample is dropped."""
    quantile: float = Field(default=0.75, ge=0, le=1)
    """Samples are kept whose advantage reaches this quantile of their prompt's."""
    capacity: PositiveInt = 512
    """Samples held; the oldest go first."""


@dataclass
class ReplayBuffer:
    """What is held: the rows of kept samples, their conditions, and when they were drawn."""

    columns: dict[str, Tensor] = field(default_factory=dict)
    """Of `Transitions`; `condition` is a row of `conditions`, `sample` a number of its own."""
    conditions: dict[str, Tensor] = field(default_factory=dict)
    born: Int64[Tensor, " B"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    next_number: int = 0

    def __len__(self) -> int:
        """How many samples are held."""
        return len(self.columns["sample"].unique()) if self.columns else 0

    def admit(
        self, rows: Transitions, condition: Condition, rule: Replay, iteration: int, processes: Processes
    ) -> None:
        """Take in the best rows of all processes, and let go what is too old or too much."""
        mine = self._as_stored(_columns(rows), processes) | {
            f"condition.{n}": t[rows.condition].cpu() for n, t in _alike(condition, processes).items()
        }
        everyone = processes.gather({name: column.cpu() for name, column in mine.items()})
        fresh = {name: column for name, column in everyone.items() if not name.startswith("condition.")}
        keep = _best(fresh, rule.quantile)
        names, first, number = _first_rows(fresh["sample"][keep])
        taken = {name: column[keep] for name, column in fresh.items()}
        taken["sample"] = number + self.next_number
        taken["condition"] = number + (len(next(iter(self.conditions.values()))) if self.conditions else 0)
        self.next_number += len(names)
        given = {n: everyone[f"condition.{n}"][keep][first] for n in condition.tensors}
        self.columns = {n: torch.cat([self.columns[n], c]) if self.columns else c for n, c in taken.items()}
        held = [Condition(self.conditions)] if self.conditions else []
        self.conditions = dict(joined([*held, Condition(given)]).tensors)
        self.born = torch.cat([self.born, torch.full((len(number),), iteration)])
        self._let_go(rule, iteration)

    def draw(
        self, count: int, address: Address, processes: Processes, start: int
    ) -> tuple[Transitions | None, Condition | None]:
        """Rows of `count` samples, or of all there are, and their conditions; this process's share of them.

        Samples get negative numbers, conditions the rows from `start` on.
        """
        samples = self.columns["sample"].unique() if self.columns else torch.zeros(0, dtype=torch.int64)
        chosen = samples[address.permutation(len(samples))[:count]]
        mine = chosen[torch.tensor(list(processes.share(len(chosen))), dtype=torch.int64)]
        if len(mine) == 0:
            return None, None
        keep = torch.isin(self.columns["sample"], mine)
        taken = {name: column[keep] for name, column in self.columns.items()}
        used, taken["condition"] = torch.unique(taken["condition"], return_inverse=True)
        taken["condition"] = taken["condition"] + start
        taken["sample"] = -1 - taken["sample"]
        return Transitions(**taken), Condition({n: t[used] for n, t in self.conditions.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        if not self.columns:
            return {}
        conditions = {f"condition.{name}": t for name, t in self.conditions.items()}
        return {
            **self.columns,
            **conditions,
            "born": self.born,
            "next_number": torch.tensor([self.next_number]),
        }

    def restore(self, tensors: dict[str, Tensor], latent_shape: tuple[int, ...], source: str) -> None:
        """Back from a checkpoint's tensors; raises UserError where they belong to another model."""
        if not tensors:
            return
        optional = {f.name for f in fields(Transitions) if f.default is None}
        needed = {f.name for f in fields(Transitions)} - optional | {"born", "next_number"}
        if lacking := sorted(needed - tensors.keys()):
            raise UserError(
                f"{source}: the replay buffer lacks '{lacking[0]}'; remove the file to go on with an empty "
                "buffer"
            )
        held, sizes = tensors["x"], tensors.get(f"condition.{SIZE}")
        of_one_size = sizes is None or not bool(sizes.any())
        if of_one_size and tuple(held.shape[1:]) != latent_shape:
            raise UserError(
                f"{source}: the replay buffer holds latents of shape {tuple(held.shape[1:])}, this model's "
                f"have {latent_shape}; resume with the model it was written with, or remove the file to go "
                "on with an empty buffer"
            )
        tensors = dict(tensors)
        self.born, self.next_number = tensors.pop("born"), int(tensors.pop("next_number"))
        self.conditions = {n[10:]: t for n, t in tensors.items() if n.startswith("condition.")}
        self.columns = {n: t for n, t in tensors.items() if not n.startswith("condition.")}

    def _as_stored(self, columns: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
        """Latents as flat rows, where those of other processes, or the stored ones, have another shape."""
        shape = torch.tensor([columns["x"].ndim, *columns["x"].shape[1:], *[0] * 8][:8])
        longest = torch.cat([shape.new_tensor([math.prod(columns["x"].shape[1:])]), shape])
        told = processes.gather({"shape": longest[None]})["shape"]
        held = self.columns.get("x")
        if len(told.unique(dim=0)) == 1 and (held is None or held.shape[1:] == columns["x"].shape[1:]):
            return columns
        elements = max(int(told[:, 0].max()), 0 if held is None else held[0].numel())
        latents = [name for name in Transitions.LATENTS if name in columns]
        for name in latents:
            if self.columns:
                self.columns[name] = stacked([self.columns[name]], elements)
        return columns | {name: stacked([columns[name]], elements) for name in latents}

    def _let_go(self, rule: Replay, iteration: int) -> None:
        samples = self.columns["sample"].unique()
        oldest = samples[max(len(samples) - rule.capacity, 0)] if len(samples) else 0
        keep = (self.born > iteration - rule.max_age) & (self.columns["sample"] >= oldest)
        self.columns = {name: column[keep] for name, column in self.columns.items()}
        self.born = self.born[keep]
        used, self.columns["condition"] = torch.unique(self.columns["condition"], return_inverse=True)
        self.conditions = {name: t[used] for name, t in self.conditions.items()}


def mixed(
    rows: Transitions, condition: Condition, again: Transitions | None, given: Condition | None
) -> tuple[Transitions, Condition]:
    """Fresh and replayed rows in one table, and the conditions both refer to."""
    if again is None or given is None:
        return rows, condition
    join = torch.cat if rows.x.shape[1:] == again.x.shape[1:] else stacked
    columns = {
        name: (join if name in rows.LATENTS else torch.cat)([column, getattr(again, name).to(column.device)])
        for name, column in _columns(rows).items()
    }
    return replace(rows, **columns), joined([condition, given])


def _alike(condition: Condition, processes: Processes) -> dict[str, Tensor]:
    """The columns as long as the longest of any process."""
    long = {name: column for name, column in condition.tensors.items() if column.ndim > 1}
    if not long:
        return dict(condition.tensors)
    told = torch.tensor([[column.shape[1] for column in long.values()]])
    longest = processes.gather({"length": told})["length"].amax(0).tolist()
    filled = {n: padded(c, length) for (n, c), length in zip(long.items(), longest, strict=True)}
    return {**condition.tensors, **filled}


def _columns(rows: Transitions) -> dict[str, Tensor]:
    return {f.name: c for f in fields(rows) if (c := getattr(rows, f.name)) is not None}


def _best(rows: dict[str, Tensor], quantile: float) -> Bool[Tensor, " B"]:
    """Rows of samples whose advantage reaches the quantile of their prompt's samples."""
    keep = torch.zeros(len(rows["sample"]), dtype=torch.bool)
    for slot in rows["prompt_slot"].unique().tolist():
        own = rows["prompt_slot"] == slot
        _, first, which = _first_rows(rows["sample"][own])
        value = rows["advantages"][own].sum(1)[first].double()
        keep[own] = (value >= value.quantile(quantile))[which]
    return keep


def _first_rows(samples: Int64[Tensor, " B"]) -> tuple[Tensor, Tensor, Tensor]:
    """(the samples, the first row of each, the sample's place for each row)."""
    names, which = torch.unique(samples, return_inverse=True)
    rows = torch.arange(len(samples))
    first = torch.full((len(names),), len(samples)).scatter_reduce(0, which, rows, "amin")
    return names, first, which
