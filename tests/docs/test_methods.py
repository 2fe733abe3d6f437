"""A page for every trajectory method, and no page without one."""

from pathlib import Path

import pytest

from thalweg.training.bench import SUITES
from thalweg.training.recipe import load_recipe, recipe_names

PAGES = Path(__file__).parents[2] / "docs" / "methods"


def test_every_suite_compares_shipped_recipes():
    assert {name for names in SUITES.values() for name in names} <= set(recipe_names())


def test_every_page_is_that_of_a_method():
    assert {page.stem for page in PAGES.glob("*.md")} == {"index", *SUITES["trajectory"]}


@pytest.mark.parametrize("name", SUITES["trajectory"])
def test_the_list_of_methods_names_title_paper_and_claim_as_the_recipe_does(name):
    recipe = load_recipe(name)
    line = f"| [{recipe.title}]({name}.md) | {recipe.paper} | {recipe.claim} |"
    assert line in (PAGES / "index.md").read_text(encoding="utf-8").splitlines()
