"""The sizes that a run's samples have: found, and refused where something needs one, before it starts."""

from collections.abc import Sequence

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt, Size
from thalweg.models import Policy
from thalweg.models.contract import HasSizes
from thalweg.models.sizes import OWN_SIZE, size_asked, sizes_of
from thalweg.training.recipe.checks.sizes import several_sizes
from thalweg.training.recipe.schema import Recipe


def of_all_sizes(recipe: Recipe, policy: Policy, prompts: Sequence[Prompt]) -> list[Policy]:
    """The policy at every size that these prompts, and `data.sizes`, ask for; raises UserError, with the
    place, where one cannot be made.
    """
    if not isinstance(policy, HasSizes):
        return [policy]
    found = dict.fromkeys(sizes_of(policy, [*_listed(recipe), *_own(recipe, prompts)]))
    if len(found) > 1 and (problems := several_sizes(recipe)):
        raise UserError("\n".join(problems))
    return [policy.at(size) for size in found] or [policy]


def all_sizes(recipe: Recipe, prompts: Sequence[Prompt]) -> list[Size]:
    """The sizes that are asked for, whether the model can make them or not; at least its own."""
    asked = [*_listed(recipe), *_own(recipe, prompts)]
    return list(dict.fromkeys(size_asked(prompt) for prompt in asked)) or [OWN_SIZE]


def _listed(recipe: Recipe) -> list[Prompt]:
    sizes = enumerate(recipe.data.sizes)
    return [Prompt("", size.asked, f"data.sizes.{number}") for number, size in sizes]


def _own(recipe: Recipe, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts whose size is not drawn from `data.sizes`."""
    return [p for p in prompts if not recipe.data.sizes or size_asked(p) != OWN_SIZE]
