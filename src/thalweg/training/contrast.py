"""A line where rewards tell no samples apart, so that an iteration teaches nothing.

It is said in the 1st such iteration in a row, the 10th, the 100th. The run goes on: the policy stays what it
is, later prompts may have better and worse samples, and a run under a budget ends with its evaluation.
Shapes: B samples of all processes.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from thalweg.core.forest import Leaves
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.objectives import OnPolicyDistillation
from thalweg.objectives.contract import PathwiseContract
from thalweg.rewards import finished, total
from thalweg.training.recipe.schema import Recipe
from thalweg.training.units import Rows


def without_contrast(
    recipe: Recipe,
    rows: Rows,
    scores: Mapping[str, Float[Tensor, " B"]],
    leaves: Leaves,
    asked: Sequence[Prompt],
    processes: Processes,
) -> str | None:
    """What is equal and the way out, or None. `rows` are this process's, before any is left out.

    Pairs that are given are made to differ, so one without a preference is named by itself.
    """
    if isinstance(recipe.objective, OnPolicyDistillation | PathwiseContract):
        return None  # their credit is not read
    reward = total(scores, finished(recipe.rewards))
    equal = [slot for slot in range(len(asked)) if _is_equal(reward[leaves.prompt_slot == slot])]
    if recipe.rollout.given and not recipe.rollout.num_drawn:
        if not equal:
            return None
        where = "the given samples of " + _named(equal[0], asked, reward, leaves)
        others = f" (and those of {len(equal) - 1} more)" if len(equal) > 1 else ""
        remedy = "use a reward that tells them apart, or other prompts"
        return f"{where}{others}, so none is preferred; {remedy}"
    if processes.any(bool((rows.advantages != 0).any())):
        return None
    where = f"all samples of {_named(equal[0], asked, reward, leaves)}, and no" if equal else "no"
    noisier = " or rollout.kernel.noise_level" if recipe.rollout.plan.stochastic else ""
    return (
        f"{where} prompt has better and worse samples, so this iteration's samples teach nothing; "
        f"raise rollout.group_size{noisier}, or use a finer reward or prompts that are neither too easy nor "
        "too hard"
    )


def is_said(in_a_row: int) -> bool:
    """Whether it is said again, after so many iterations: 1, 10, 100, ..."""
    return str(in_a_row).rstrip("0") == "1"


def _is_equal(reward: Float[Tensor, " b"]) -> bool:
    known = reward[reward.isfinite()]
    return not bool((known != known[:1]).any())


def _named(slot: int, asked: Sequence[Prompt], reward: Float[Tensor, " B"], leaves: Leaves) -> str:
    known = reward[(leaves.prompt_slot == slot) & reward.isfinite()]
    worth = f"earn the same, {float(known[0]):.4g}" if len(known) else "have no reward that is a number"
    return f"'{asked[slot].text}' {worth}"
