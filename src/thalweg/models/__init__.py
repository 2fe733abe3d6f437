"""What is trained: a contract, named weights, and the models that keep it."""

from thalweg.models.contract import Passes, Policy
from thalweg.models.miniature.policy import MiniatureModel, load_miniature
from thalweg.models.weights import POLICY, NamedWeights

Model = MiniatureModel

__all__ = ["POLICY", "MiniatureModel", "Model", "NamedWeights", "Passes", "Policy", "load_miniature"]
