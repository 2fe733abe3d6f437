"""What is trained: a contract, named weights, and the models that keep it."""

from typing import Annotated

from pydantic import SerializeAsAny

from thalweg.core.part import OWN_PART
from thalweg.models.contract import Embeds, ModelContract, Passes, Policy
from thalweg.models.miniature.policy import MiniatureModel
from thalweg.models.weights import POLICY, NamedWeights

Model = Annotated[SerializeAsAny[MiniatureModel], OWN_PART]

__all__ = ["POLICY", "Embeds", "MiniatureModel", "Model", "ModelContract", "NamedWeights", "Passes", "Policy"]
