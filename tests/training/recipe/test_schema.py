"""What must hold for every recipe and for every class a recipe is made of."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import thalweg
from thalweg.core.part import Part
from thalweg.training.recipe.load import check_recipe, find_recipe, load_recipe, recipe_names

SOURCE = Path(thalweg.__file__).parent
ORDER = [
    "model",
    "weights",
    "data",
    "rollout",
    "rewards",
    "credit",
    "objective",
    "optim",
    "evaluation",
    "run",
]


def classes_of(base: type) -> list[type]:
    for module in pkgutil.walk_packages(thalweg.__path__, "thalweg."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = [], [base]
    while waiting:
        for inner in waiting.pop().__subclasses__():
            waiting.append(inner)
            if inner.__module__.startswith("thalweg.") and inner not in found:
                found.append(inner)
    return sorted(found, key=lambda c: c.__qualname__)


PARTS = classes_of(Part)
FIELDS = [(part, name) for part in PARTS for name in part.model_fields]


def test_every_config_class_derives_from_the_frozen_forbidding_base():
    assert len(PARTS) > 20
    assert set(classes_of(BaseModel)) - {Part} == set(PARTS)


@pytest.mark.parametrize("part", PARTS, ids=lambda c: c.__name__)
def test_a_part_refuses_unknown_keys_and_cannot_be_changed(part):
    assert part.model_config["frozen"] and part.model_config["extra"] == "forbid"
    with pytest.raises(ValidationError) as caught:
        part.model_validate({"no_such_key": 1})
    assert "extra_forbidden" in [problem["type"] for problem in caught.value.errors()]


def reads() -> set[str]:
    """Names that some code reads, as an attribute or by its key, validators of config classes left out."""
    names: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        for node in _without_validators(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(str(node.slice.value))
    return names


def _without_validators(node: ast.AST):
    yield node
    for child in ast.iter_child_nodes(node):
        decorators = [ast.unparse(d) for d in getattr(child, "decorator_list", ())]
        if not any("validator" in d for d in decorators):
            yield from _without_validators(child)


READ = reads()


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_some_code_reads_every_field(part, name):
    if name == "kind":
        return  # chooses the class, before there is an object to read it from
    assert name in READ


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_complete_in_order_and_says_where_it_is_from(name):
    text = find_recipe(name).read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    assert f"thalweg train {name}" in text.split("title:")[0]
    head = [key for key in written if key != "claim"]
    assert head[:4] == ["title", "paper", "iterations", "seed"]
    assert "claim" not in written or list(written)[2] == "claim"
    sections = [key for key in written if key in ORDER]
    assert sections == [key for key in ORDER if key in sections]
    assert {"model", "data", "rollout", "rewards", "credit", "objective", "optim", "run"} <= set(sections)
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.title) > 10
    assert "arXiv:" in recipe.paper or recipe.paper.endswith("(code)")


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_reads_back_as_the_same_one(name):
    recipe = load_recipe(name)
    assert check_recipe(yaml.safe_load(recipe.to_yaml()), "text") == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_default_stands_in_the_resolved_recipe(name):
    def walk(value, written):
        if isinstance(value, Part):
            fields = type(value).model_fields
            assert written.keys() == {field.alias or key for key, field in fields.items()}
            for key, field in fields.items():
                walk(getattr(value, key), written[field.alias or key])
        elif isinstance(value, dict):
            assert written.keys() == value.keys()
            for key in value:
                walk(value[key], written[key])
        elif isinstance(value, tuple):
            for inner, other in zip(value, written, strict=True):
                walk(inner, other)

    recipe = load_recipe(name)
    walk(recipe, yaml.safe_load(recipe.to_yaml()))


def test_recipes_of_several_seeds_differ_in_the_seed_alone():
    a, b = load_recipe("mix-grpo", ["seed=1"]), load_recipe("mix-grpo", {"seed": 2})
    assert a != b
    assert a.model_copy(update={"seed": 2}) == b


def test_overrides_leave_what_the_caller_gave_as_it_is():
    window = {"kind": "window", "size": 2}
    recipe = load_recipe("mix-grpo", {"rollout.plan": window, "rollout.plan.size": 3})
    assert recipe.rollout.plan.size == 3 and window == {"kind": "window", "size": 2}
