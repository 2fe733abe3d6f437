"""How surrogate errors and advantages become a loss, and what ends the step."""

from typing import Annotated

from pydantic import Field

from thalweg.objectives.rules.centred import Centred
from thalweg.objectives.rules.implicit import Implicit
from thalweg.objectives.rules.preference import Preference
from thalweg.objectives.rules.ratio import Ratio
from thalweg.objectives.rules.residual import Residual
from thalweg.objectives.rules.weighted import Weighted

AnyRule = Annotated[
    Implicit | Weighted | Residual | Ratio | Preference | Centred, Field(discriminator="kind")
]

__all__ = ["AnyRule", "Centred", "Implicit", "Preference", "Ratio", "Residual", "Weighted"]
