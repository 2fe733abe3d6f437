"""What a pipeline stops with, as one line for who can mend it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thalweg.core.errors import UserError
from thalweg.models.diffusers.modular import name_of

BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
)
"""What code of a pipeline stops with that is called in a way it was not written for."""
HOUSE = Path(__file__).parents[2]


@contextmanager
def in_a_line(pipeline: Any) -> Iterator[None]:
    """Inside, what the pipeline refuses or stumbles over is a UserError; what our code does is left alone."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"model: {name_of(pipeline)} refuses the settings: {error}") from error
    except BROKEN as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if Path(frame.filename).is_relative_to(HOUSE):
            raise
        said = next(iter(str(error).strip().splitlines()), "no reason given")
        raise UserError(
            f"model: {name_of(pipeline)} fails with these settings: {said} ({type(error).__name__} in "
            f"{Path(frame.filename).name}, line {frame.lineno}); give in model and model.call what a call of "
            "the pipeline needs; if it has that, it needs an entry in models/diffusers/families.py"
        ) from error
