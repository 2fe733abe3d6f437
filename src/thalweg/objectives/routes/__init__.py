"""From stored states to a clean sample with a gradient: one file a way that the reward's gradient takes."""

from typing import Annotated

from pydantic import Field

from thalweg.objectives.routes.direct_align import DirectAlign
from thalweg.objectives.routes.last_steps import LastSteps
from thalweg.objectives.routes.leap import Leap
from thalweg.objectives.routes.one_step import OneStep

Route = Annotated[OneStep | LastSteps | Leap | DirectAlign, Field(discriminator="kind")]

__all__ = ["DirectAlign", "LastSteps", "Leap", "OneStep", "Route"]
