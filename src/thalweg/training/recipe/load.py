"""Recipes: one file a method, read strictly, every problem reported with its place and the way out."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from thalweg.core.errors import UserError
from thalweg.core.names import nearest
from thalweg.core.part import Part
from thalweg.models import Model, from_shorthand
from thalweg.training.recipe.checks import across_sections
from thalweg.training.recipe.explain import broken, listing
from thalweg.training.recipe.schema import Recipe
from thalweg.training.recipe.variants import folder_of


def load_recipe(source: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """A recipe by name (`mix-grpo`, `flux1-dev/mix-grpo`) or file, with `key=value` overrides
    (`rollout.steps=8`, values are YAML). With `model=` a folder or a name on the hub, a name stands for its
    variant for that model, where there is one.

    Raises UserError with one line a problem.
    """
    pairs = [*overrides.items()] if isinstance(overrides, Mapping) else [_pair(text) for text in overrides]
    path = find_recipe(_variant(source, pairs))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; mend the file")
    tree = {"name": _name_of(path), **tree}
    for key, value in pairs:
        is_real = isinstance(tree.get("model"), dict) and tree["model"].get("kind") == "diffusers"
        if key == "model" and isinstance(value, str) and is_real:
            _put(tree, "model.path", value)  # the recipe's other settings of the model stay
        else:
            _put(tree, key, from_shorthand(value) if key == "model" else value)
    return check_recipe(tree, str(source))


def _variant(source: str | Path, overrides: Sequence[tuple[str, Any]]) -> str | Path:
    """The recipe's variant for the model that the overrides name, or the recipe itself."""
    model = dict(overrides).get("model")
    folder = folder_of(model) if isinstance(model, str) else None
    variant = f"{folder}/{source}"
    return variant if variant in full_size_names() else source


def _name_of(path: Path) -> str:
    """`mix-grpo`, or `flux1-dev-mix-grpo`: it begins the name of a run's folder."""
    of_model = path.parent.parent == Path(str(_shipped()))
    return f"{path.parent.name}-{path.stem}" if of_model else path.stem


class _ModelAlone(Part):
    model: Model


def load_model(overrides: Sequence[str]) -> Model:
    """The model that `model=FOLDER model.key=value ...` describes, without a recipe."""
    tree: dict[str, Any] = {}
    for key, value in map(_pair, overrides):
        _put(tree, key, from_shorthand(value) if key == "model" else value)
    try:
        return _ModelAlone.model_validate(tree).model
    except ValidationError as error:
        raise UserError(listing("model", broken(error, tree))) from None


def check_recipe(tree: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that plain values describe; raises UserError with every problem, a line each."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(listing(source, broken(error, tree))) from None
    problems = across_sections(recipe)
    if problems:
        raise UserError(listing(source, problems))
    return recipe


def recipe_names() -> list[str]:
    """Names of the shipped recipes that run as they stand, on an embedded world."""
    return sorted(p.name.removesuffix(".yaml") for p in _shipped().iterdir() if p.name.endswith(".yaml"))


def full_size_names() -> list[str]:
    """Names of the shipped recipes for real models, `model/method`: they need weights and prompts."""
    folders = [folder for folder in _shipped().iterdir() if folder.is_dir()]
    return sorted(f"{f.name}/{p.name[:-5]}" for f in folders for p in f.iterdir() if p.name.endswith(".yaml"))


def find_recipe(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"recipe '{source}': no such file")
        return path
    shipped = Path(str(_shipped())) / f"{source}.yaml"
    if not shipped.is_file():
        known = [*recipe_names(), *full_size_names()]
        raise UserError(
            f"recipe '{source}': none of that name{nearest(str(source), known)}; "
            "`thalweg methods` lists them, or give a .yaml file"
        )
    return shipped


def _shipped() -> Any:
    return resources.files("thalweg") / "recipes"


def _pair(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"'{text}': an override is key=value, such as rollout.steps=8")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"'{text}': the value is not YAML; quote it") from None


def _put(tree: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    at, value = tree, _own(value)
    for name in parents:
        if isinstance(at, list) and name.isdigit() and int(name) < len(at):
            at = at[int(name)]
            continue
        if not isinstance(at, dict):
            raise UserError(f"'{key}': '{name}' has no parts; look at the recipe with --dry-run")
        if not isinstance(at.get(name), dict | list):
            at[name] = {}
        at = at[name]
    if isinstance(at, list) and last.isdigit() and int(last) < len(at):
        at[int(last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise UserError(f"'{key}': nothing there to set; look at the recipe with --dry-run")


def _own(value: Any) -> Any:
    """A copy of what later overrides may reach into; what the caller gave stays as it is."""
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items()}
    return [_own(inner) for inner in value] if isinstance(value, list) else value
