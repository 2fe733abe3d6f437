"""The base of every part of a recipe: a frozen config of numbers that refuses unknown keys."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, WrapValidator


class Part(BaseModel):
    """One choice of a recipe. Frozen, strict about its keys; a field's docstring is the line under it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        serialize_by_alias=True,
    )


def _own_part(value: Any, validate: Callable[[Any], Any]) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if not isinstance(kind, str) or ":" not in kind:
        return validate(value)
    if isinstance(value, Part):
        return value
    module, _, name = kind.partition(":")
    try:
        part = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"kind '{kind}' cannot be imported ({error}); give module:Class of your own"
        ) from None
    if not (isinstance(part, type) and issubclass(part, Part)):
        raise ValueError(f"kind '{kind}' is no Part; derive it from thalweg.core.part.Part")
    return part.model_validate(value)


OWN_PART = WrapValidator(_own_part)
"""On a union of parts: also takes a user's own, whose `kind` is its import path `module:Class`."""
