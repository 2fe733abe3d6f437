"""What a credit reads and the rollout or the rewards do not give, or give in vain."""

from thalweg.core.names import nearest
from thalweg.credit import BlameCredit, DenseCredit, ProcessCredit, RoutedCredit, TreeCredit
from thalweg.models import MiniatureModel, SoundingModel
from thalweg.objectives import Forward
from thalweg.rewards import finished, judges_steps
from thalweg.rewards.world import WorldReward
from thalweg.rollout import Candidates, Tree
from thalweg.training.recipe.schema import Recipe
from thalweg.training.units import WIDE
from thalweg.worlds import WORLDS, find_world


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
    if isinstance(credit, ProcessCredit) and credit.process_weight and rollout.plan.stochastic:
        sigmas, steps = rollout.sigmas(recipe.seed, 0), rollout.trained_steps(recipe.seed, 0)
        if steps and credit.sigma_max < sigmas[steps[-1] + 1]:
            problems.append(
                f"credit.sigma_max={credit.sigma_max:g}: the first iteration trains no step into so clean a "
                f"state; its last leads to {sigmas[steps[-1] + 1]:g}, give at least that"
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
    if isinstance(credit, RoutedCredit):
        problems += _routed(recipe, credit)
    if isinstance(credit, BlameCredit):
        problems += _blame(recipe)
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


def _blame(recipe: Recipe) -> list[str]:
    """What keeps credit from a place, or the objective from taking it there."""
    problems, judges = [], [reward for reward in recipe.rewards if isinstance(reward, WorldReward)]
    if not judges or find_world(judges[0].world).blame is None:
        able = ", ".join(world.name for world in WORLDS.values() if world.blame)
        problems.append(
            "credit.kind: 'blame' asks the judge of a world where a sample fails; add a reward {kind: world} "
            f"of one that can tell: {able}"
        )
    if not isinstance(recipe.model, MiniatureModel):
        problems.append(
            f"credit.kind: 'blame' marks pixels of pictures, which the model '{recipe.model.kind}' does not "
            "make alone; use the model miniature"
        )
    return problems + _regional(recipe)


def _routed(recipe: Recipe, credit: RoutedCredit) -> list[str]:
    """What keeps rewards from their parts."""
    there = [reward.name for reward in recipe.rewards]
    problems = [
        f"credit.parts: no reward is called '{name}'{nearest(name, there)}; add it, or leave it out"
        for part in credit.parts
        for name in part
        if name not in there
    ]
    of_samples = [reward.name for reward in finished(recipe.rewards)]
    problems += [
        f"credit.parts: part {number} hears no reward and would learn nothing; name a reward there, or leave "
        "one out of all parts, so that everyone hears it"
        for number, part in enumerate(credit.parts, 1)
        if not part and not credit.heard(part, of_samples)
    ]
    return problems + _regional(recipe)


def attention(recipe: Recipe) -> list[str]:
    """Attention that is noted and not read, read and not noted, or asked of a model that has none."""
    noted, credit, problems = recipe.rollout.attention, recipe.credit, []
    is_read = isinstance(credit, RoutedCredit) and credit.attended is not None
    if noted is not None and not is_read:
        problems.append(
            "rollout.attention: only credit 'routed' with credit.attended reads it; give "
            "credit.attended={}, or leave it out"
        )
    if is_read and noted is None:
        problems.append(
            "credit.attended: weighs elements by attention, and the rollout notes none; give "
            "rollout.attention, such as {modules: video_to_audio_attn}"
        )
    if noted is not None and isinstance(recipe.model, MiniatureModel | SoundingModel):
        problems.append(
            f"rollout.attention: the model '{recipe.model.kind}' has no attention to note; leave it and "
            "credit.attended out, or use a real model that has, such as LTX-2"
        )
    return problems


def _regional(recipe: Recipe) -> list[str]:
    """What keeps the objective from taking credit to a place."""
    objective = recipe.objective
    if isinstance(objective, Forward) and objective.unit in ("row", "sample"):
        return []
    return [
        f"credit.kind: '{recipe.credit.kind}' credits places of finished samples; use an objective of kind "
        "forward whose rule looks at samples by themselves, such as implicit"
    ]
