"""Fixtures: two small policies, so that tests of the parts do not depend on shipped weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported

import torchvision_on_cpu  # noqa: F401

# isort: split
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from thalweg.core.values import Condition, Prompt
from thalweg.models import MiniatureModel, NamedWeights, Passes
from thalweg.models.miniature.network import Miniature, MiniatureConfig
from thalweg.models.miniature.policy import MiniaturePolicy
from thalweg.worlds import find_world
from thalweg.worlds.scenes.vocabulary import VOCABULARY

# A process that has computed with several threads cannot be forked.
torch.set_num_threads(1)
# A loaded machine is no failure, and every run of the tests sees the same examples.
settings.register_profile("thalweg", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("thalweg")


class LinearPolicy:
    """The exact flow of data N(shift, 1/4) in every latent element, plus one trained bias: closed forms.

    v = shift' + (σ - (1-σ)/4) / ((1-σ)²/4 + σ²) (x - (1-σ) shift) + bias. A prompt's `shift` is its metadata.
    """

    passes_per_velocity = 1
    latent_dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, latent_shape: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float32) -> None:
        self.latent_shape = latent_shape
        self.bias = nn.Parameter(torch.zeros(latent_shape, dtype=dtype))
        self.weights = NamedWeights({"bias": self.bias})
        self.passes = Passes()
        self.batches: list[int] = []

    def encode(self, prompts: list[Prompt]) -> Condition:
        return Condition({"shift": torch.tensor([float(p.metadata.get("shift", 0.0)) for p in prompts])})

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.passes.evaluations += len(x)
        self.batches.append(len(x))
        shift, sigma = (t.view(-1, *[1] * (x.ndim - 1)) for t in (condition.tensors["shift"], sigma))
        slope = (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)
        return self.weights.watch(slope * (x - (1 - sigma) * shift) - shift + self.bias)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@pytest.fixture
def linear_policy() -> type[LinearPolicy]:
    """Makes a policy with closed forms: `linear_policy(latent_shape, dtype)`."""
    return LinearPolicy


def _tiny_network() -> Miniature:
    channels, height, width = find_world("scenes").image_shape
    sizes = {"stem_channels": 8, "model_width": 16, "text_depth": 1, "depth": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Miniature(
            MiniatureConfig(
                channels=channels,
                height=height,
                width=width,
                num_tokens=VOCABULARY.num_tokens,
                text_length=VOCABULARY.length,
                **sizes,
            )
        )
        for parameter in network.parameters():  # some start at zero; those of a trained network do not
            nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def tiny_policy():
    """Makes a policy over a random network of the scenes world: `tiny_policy(model)`."""

    def make(model: MiniatureModel = MiniatureModel()) -> MiniaturePolicy:  # noqa: B008  (frozen)
        return MiniaturePolicy(_tiny_network(), model)

    return make


@pytest.fixture
def prompts() -> tuple[Prompt, ...]:
    """Four prompts of the scenes world, of different tasks."""
    return find_world("scenes").training_prompts()[::163]
