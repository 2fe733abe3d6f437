"""What is trained: a contract, named weights, and the models that keep it."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from thalweg.core.part import OWN_PART
from thalweg.models.contract import Embeds, EncodesAhead, ModelContract, Passes, Policy
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.miniature.policy import MiniatureModel
from thalweg.models.miniature.sounding import SoundingModel
from thalweg.models.weights import POLICY, NamedWeights


def from_shorthand(value: Any) -> Any:
    """A string stands for the pipeline in that folder or of that name."""
    return {"kind": "diffusers", "path": value} if isinstance(value, str) else value


Model = Annotated[
    SerializeAsAny[Annotated[MiniatureModel | SoundingModel | DiffusersModel, Field(discriminator="kind")]],
    OWN_PART,
    BeforeValidator(from_shorthand),
]

__all__ = [
    "POLICY",
    "DiffusersModel",
    "Embeds",
    "EncodesAhead",
    "MiniatureModel",
    "Model",
    "ModelContract",
    "NamedWeights",
    "Passes",
    "Policy",
    "SoundingModel",
    "from_shorthand",
]
