"""What a credit reads and the rollout or the rewards do not give, or give in vain."""

from thalweg.core.names import nearest
from thalweg.credit import DenseCredit, ProcessCredit, TreeCredit
from thalweg.rewards import judges_steps
from thalweg.rollout import Candidates, Tree
from thalweg.training.schema import Recipe
from thalweg.training.units import WIDE


def credited(recipe: Recipe) -> list[str]:
    """What a credit reads and the rollout or the rewards do not give, or give in vain."""
    rollout, credit, problems = recipe.rollout, recipe.credit, []
    siblings = isinstance(credit, ProcessCredit) and credit.compare == "siblings"
    is_compared = getattr(credit, "std", "none") != "none" or recipe.objective.unit in WIDE
    if rollout.group_size < 2 and is_compared and not siblings:
        problems.append(
            f"rollout.group_size={rollout.group_size}: a group of one has no better and no worse; "
            "give 2 or more"
        )
    if isinstance(credit, DenseCredit) != rollout.probes:
        problems.append(
            "credit.kind: 'dense' credits a step by the probes of the states around it; set "
            "rollout.probes=true"
            if not rollout.probes
            else "rollout.probes: only credit 'dense' reads them, and they cost passes; leave them out"
        )
    if isinstance(credit, TreeCredit) and not isinstance(rollout.plan, Tree):
        problems.append(
            f"credit.kind: 'tree' credits the edges of a tree, and the plan '{rollout.plan.kind}' "
            "grows none; use "
            "the plan tree, or credit 'group'"
        )
    of_steps = [reward.name for reward in recipe.rewards if judges_steps(reward)]
    if isinstance(credit, ProcessCredit) and credit.process_weight and not of_steps:
        problems.append(
            "credit.kind: 'process' reads a reward of noisy states; add one, such as "
            "{kind: scorer, at: steps}"
        )
    if of_steps and not isinstance(credit, ProcessCredit):
        readers = (rollout.guidance, recipe.evaluation.stepwise)
        read = {reader.reward for reader in readers if reader is not None}
        problems += [
            f"rewards: '{name}' judges noisy states, which only credit 'process', rollout.guidance and "
            "evaluation.stepwise read; change credit.kind"
            for name in of_steps
            if name not in read
        ]
    if isinstance(rollout.plan, Candidates) and not siblings:
        problems.append(
            "rollout.plan.kind: 'candidates' end where they are judged; use credit {kind: process, compare: "
            "siblings}"
        )
    if rollout.guidance is not None and rollout.guidance.reward not in of_steps:
        problems.append(
            f"rollout.guidance.reward='{rollout.guidance.reward}': no reward of noisy states is called that"
            f"{nearest(rollout.guidance.reward, of_steps) if of_steps else ''}; add one, such as "
            "{kind: scorer, at: steps}"
        )
    stepwise = recipe.evaluation.stepwise
    if stepwise is not None and stepwise.reward not in of_steps:
        problems.append(
            f"evaluation.stepwise.reward='{stepwise.reward}': no reward of noisy states is called that"
            f"{nearest(stepwise.reward, of_steps) if of_steps else ''}; add one, such as "
            "{kind: scorer, at: steps}"
        )
    return problems
