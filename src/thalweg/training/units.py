"""What must stay together: the passes that one loss term depends on (`objectives.contract.Unit`).

Shapes: B rows of this process.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from thalweg.core.forest import Leaves
from thalweg.core.processes import Processes
from thalweg.core.values import Paths, Samples, Transitions, columns_of
from thalweg.objectives.contract import Unit
from thalweg.objectives.segments import best_and_worst

Rows = Transitions | Samples | Paths

WIDE: tuple[Unit, ...] = ("pair", "group")
"""Units that span samples of a prompt, which may stand on several processes."""


def together(unit: Unit, of: Rows | Leaves) -> Int64[Tensor, " B"]:
    """What an update must not separate has the same number: the prompt for wide units, else the sample."""
    return of.prompt_slot if unit in WIDE else of.sample


def needed(unit: Unit, rows: Rows, processes: Processes) -> Rows:
    """The rows that a loss term depends on: for pairs those of the best and the worst sample of each
    prompt.
    """
    if unit != "pair":
        return rows
    columns = columns_of(rows) | {"rank": torch.full((len(rows),), processes.rank)}
    everyone = processes.gather(columns)
    rank = best_and_worst(everyone["advantages"].sum(1), everyone["sample"], everyone["prompt_slot"])
    return rows.index(rank[everyone["rank"] == processes.rank] != 0)
