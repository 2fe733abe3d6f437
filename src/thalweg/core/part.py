"""The base of every part of a recipe: a frozen config of numbers that refuses unknown keys."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """One choice of a recipe. Frozen, strict about its keys; a field's docstring is the line under it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
    )
