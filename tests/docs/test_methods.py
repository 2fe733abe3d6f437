"""A page for every method, and no page without one."""

import re
from pathlib import Path

import pytest

from thalweg.training.bench import SUITES
from thalweg.training.recipe.load import load_recipe, recipe_names

PAGES = Path(__file__).parents[2] / "docs" / "methods"


METHODS = sorted({name for names in SUITES.values() for name in names})


def test_every_suite_compares_shipped_recipes():
    assert {name for names in SUITES.values() for name in names} <= set(recipe_names())


def test_every_page_is_that_of_a_method():
    assert {page.stem for page in PAGES.glob("*.md")} == {"index", *METHODS}


def test_every_recipe_is_in_a_suite():
    assert set(METHODS) == set(recipe_names())


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_how_to_run_what_changes_and_what_to_look_out_for(name):
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert f"`thalweg train {name}`" in text
    for heading in ("**What it changes.**", "**In the recipe.**", "**Traps.**"):
        assert heading in text
    assert re.search(r"^    \S", text, flags=re.M), "an equation"


@pytest.mark.parametrize("name", METHODS)
def test_the_list_of_methods_names_title_paper_and_claim_as_the_recipe_does(name):
    recipe = load_recipe(name)
    line = f"| [{recipe.title}]({name}.md) | {recipe.paper} | {recipe.claim} |"
    assert line in (PAGES / "index.md").read_text(encoding="utf-8").splitlines()
