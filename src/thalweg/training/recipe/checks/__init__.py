"""What no section of a recipe can see alone: a file a subject. Nothing here repairs a value."""

from thalweg.models import DiffusersModel, MiniatureModel, SoundingModel
from thalweg.objectives import Forward
from thalweg.objectives.contract import PathwiseContract
from thalweg.rewards import finished
from thalweg.training.recipe.checks.credit import attention, credited
from thalweg.training.recipe.checks.data import of_another_world, streamed, without_a_world
from thalweg.training.recipe.checks.densities import ON_PATH, densities
from thalweg.training.recipe.checks.forward import forward
from thalweg.training.recipe.checks.given import given
from thalweg.training.recipe.checks.parallel import sharded, shared, worked
from thalweg.training.recipe.checks.pathwise import pathwise
from thalweg.training.recipe.checks.selection import selection
from thalweg.training.recipe.checks.sizes import listed_sizes
from thalweg.training.recipe.checks.units import whole_groups
from thalweg.training.recipe.checks.weights import names_of_weights, roles_of_weights
from thalweg.training.recipe.schema import Recipe
from thalweg.training.units import WIDE


def across_sections(recipe: Recipe) -> list[str]:
    """A line a problem."""
    objective = recipe.objective
    problems = names_of_weights(recipe)
    if isinstance(recipe.model, DiffusersModel):
        problems += without_a_world(recipe)
    if isinstance(recipe.model, MiniatureModel | SoundingModel):
        problems += of_another_world(recipe.model, recipe)
    if isinstance(objective, ON_PATH):
        problems += densities(recipe)
    problems += given(recipe)
    problems += credited(recipe)
    problems += attention(recipe)
    problems += selection(recipe)
    if isinstance(objective, Forward):
        problems += forward(objective, recipe)
    problems += roles_of_weights(recipe)
    if isinstance(objective, PathwiseContract):
        problems += pathwise(objective, recipe)
    if objective.unit in WIDE:
        problems += whole_groups(recipe)
    if recipe.parallel.weights == "fsdp":
        problems += sharded(recipe)
    if recipe.parallel.ulysses > 1:
        problems += shared(recipe)
    if recipe.parallel.workers is not None:
        problems += worked(recipe)
    problems += listed_sizes(recipe)
    return problems + streamed(recipe) + _counts(recipe) + _rewards(recipe)


def _counts(recipe: Recipe) -> list[str]:
    """Numbers of two sections that do not go together."""
    problems = []
    if recipe.evaluation.diversity_prompts and recipe.evaluation.diversity_group < 2:
        problems.append(
            f"evaluation.diversity_group={recipe.evaluation.diversity_group}: diversity is a distance of "
            "images of a prompt; give 2 or more, or diversity_prompts=0"
        )
    prompts, whole = recipe.data.prompts_per_iteration, recipe.objective.unit in WIDE
    parts = prompts if whole else prompts * recipe.rollout.group_size
    if recipe.optim.updates_per_iteration > parts:
        problems.append(
            f"optim.updates_per_iteration={recipe.optim.updates_per_iteration}: an iteration has only "
            f"{parts} {'groups, which stay whole' if whole else 'samples'}; give fewer updates"
        )
    return problems


def _rewards(recipe: Recipe) -> list[str]:
    """Nothing to learn, or two by one name."""
    problems = []
    names = [reward.name for reward in recipe.rewards]
    if not names:
        problems.append("rewards: empty, so there is nothing to learn; give at least one")
    elif not finished(recipe.rewards):
        problems.append(
            f"rewards: '{names[0]}' judges noisy states alone, and metrics need a reward of finished "
            "samples; add one, with weight 0 if it shall not be learned from"
        )
    if len(set(names)) < len(names):
        problems.append(f"rewards: two have the same name ({', '.join(sorted(names))}); remove one")
    return problems
