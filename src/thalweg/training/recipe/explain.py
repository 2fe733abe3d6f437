"""A broken recipe in words: one line a problem, with its place, its value, the rule and the way out."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from thalweg.training.recipe.schema import Recipe


def broken(error: ValidationError, tree: Any) -> list[str]:
    """What is wrong with plain values that were no recipe, a line a problem."""
    return [_describe(problem, tree) for problem in error.errors()]


def listing(source: str, problems: list[str]) -> str:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return "\n".join([f"{source}: {count}", *(f"  {p}" for p in problems)])


def _describe(problem: Any, tree: Any) -> str:
    """One line: place, value, rule, way out."""
    place = _place(problem["loc"], tree)
    where = ".".join(str(part) for part in place) or "recipe"
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        model = _section(place[:-1], tree)
        name = model.__name__ if model else "this section"
        known = list(model.model_fields) if model else []
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = (
            f"; did you mean '{close[0]}'?"
            if close
            else f"; its keys are {', '.join(known)}"
            if known
            else ""
        )
        return f"{where}: no such key in {name}{hint}"
    if kind == "missing":
        return f"{where}: missing; it has no default, so give one"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = problem["ctx"]
        options = [tag.strip("' ") for tag in context.get("expected_tags", "").split(",")]
        tag = context.get("tag")
        if tag is None:
            return f"{where}.kind: missing; give a mapping with `kind`" + (
                f", one of {options}" if options != [""] else ""
            )
        close = difflib.get_close_matches(str(tag), options, n=1)
        return f"{where}.kind: '{tag}' is not one of {options}" + (
            f"; did you mean '{close[0]}'?" if close else ""
        )
    if kind.startswith(("float_", "int_", "bool_", "string_")) and kind.endswith(("_parsing", "_type")):
        wanted = {"float": "a number", "int": "a whole number", "bool": "true or false", "string": "text"}
        return f"{where}: expected {wanted[kind.split('_')[0]]}, got {given!r}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    shown = "" if isinstance(given, dict | list | BaseModel) or kind == "value_error" else f", got {given!r}"
    return f"{where}: {message[0].lower() + message[1:]}{shown}"


def _place(loc: Sequence[Any], tree: Any) -> list[Any]:
    """Where the user wrote it: pydantic also names the chosen kind of every union on the way."""
    place: list[Any] = []
    at: Any = tree
    for part in loc:
        if isinstance(at, Mapping) and part not in at and part == at.get("kind"):
            continue
        place.append(part)
        inside = isinstance(at, Mapping) and part in at
        at = at[part] if inside or (isinstance(at, Sequence) and isinstance(part, int)) else None
    return place


def _section(place: Sequence[Any], tree: Any) -> type[BaseModel] | None:
    """The config class at a place of the tree, by the `kind` that stands there."""
    model: type[BaseModel] | None = Recipe
    at = tree
    for part in place:
        at = at.get(part) if isinstance(at, Mapping) else at[part] if isinstance(at, Sequence) else None
        if isinstance(part, int):
            kinds: Sequence[type[BaseModel]] = [m for m in _ALL_PARTS if _kind_of(m) is not None]
        else:
            field = model.model_fields.get(str(part)) if model else None
            kinds = _classes(field.annotation, getattr(field, "metadata", ())) if field else []
        kind = at.get("kind") if isinstance(at, Mapping) else None
        named = [m for m in kinds if _kind_of(m) == kind and kind is not None]
        model = named[0] if named else kinds[0] if len(kinds) == 1 else None
    return model


def _classes(annotation: Any, metadata: Any = ()) -> list[type[BaseModel]]:
    """Config classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _classes(a)]


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else field.default


def _walk_parts(model: type[BaseModel], seen: dict[type[BaseModel], None]) -> list[type[BaseModel]]:
    if model not in seen:
        seen[model] = None
        for field in model.model_fields.values():
            for inner in _classes(field.annotation):
                _walk_parts(inner, seen)
    return list(seen)


_ALL_PARTS = _walk_parts(Recipe, {})
