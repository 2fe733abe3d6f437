"""Passes of sharded networks: two processes with different work, gradients by hand."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes, connect, disconnect
from thalweg.core.values import Condition, Prompt
from thalweg.models import NamedWeights, Passes
from thalweg.models.sharding import blocks_of, shard
from thalweg.models.shards import put, whole
from training.several_processes import on_processes


class Scale(nn.Module):
    """y = w x, element by element; three rows, which two processes do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return self.w * x


class TwoNetworks:
    """A policy that takes `high` above noise level 1/2 and `low` below it."""

    latent_shape = (3,)
    latent_dtype = torch.float32
    device = torch.device("cpu")
    passes_per_velocity = 1

    def __init__(self) -> None:
        self.networks = {"high": Scale(), "low": Scale()}
        self.passes = Passes()
        self.weights = NamedWeights({name: n.w for name, n in self.networks.items()})
        self.weights.add("old")
        for tensor in self.weights.tensors("old").values():
            tensor += 10

    def encode(self, prompts):
        return Condition({"rows": torch.zeros(len(prompts))})

    def velocity(self, x, sigma, condition):
        return self.weights.watch(self.networks["high" if sigma[0] > 0.5 else "low"](x))

    def decode(self, latents):
        return latents


def gradient(policy, name):
    """Of all processes together; FSDP2 averages over the two."""
    return whole(policy.weights.parameters[name].grad) * 2


def test_processes_with_other_networks_weights_and_numbers_of_passes_get_the_sum_of_their_gradients():
    x = torch.tensor([[1.0, 1.0, 2.0]])

    def work():
        processes, policy = connect(), TwoNetworks()
        turns = shard(policy, Prompt("a"), processes)
        if processes.is_first:
            # Two passes in a row of one network: d/dw Σ w² x = 2 w x.
            policy.weights.backward(policy.networks["high"](policy.networks["high"](x)).sum())
        else:
            with policy.weights.use("old"), torch.no_grad():
                seen = policy.networks["low"](x)
            assert_close(seen, torch.tensor([[11.0, 12.0, 26.0]]))  # (w + 10) x, from the shards of both
            policy.weights.backward((policy.networks["low"](x) * 3).sum())
        turns.meet()
        assert_close(gradient(policy, "high"), torch.tensor([2.0, 4.0, 12.0]))
        assert_close(gradient(policy, "low"), 3 * x[0])
        assert turns.padded == 2
        assert_close(whole(policy.weights.tensors("policy")["low"]), torch.tensor([1.0, 2.0, 3.0]))
        assert_close(whole(policy.weights.tensors("old")["low"]), torch.tensor([11.0, 12.0, 13.0]))
        disconnect(processes)

    on_processes(2, work)


def test_pulling_back_gives_the_slope_at_the_input_and_leaves_all_gradients_of_weights():
    x = torch.tensor([[1.0, 1.0, 2.0]])

    def work():
        processes, policy = connect(), TwoNetworks()
        turns = shard(policy, Prompt("a"), processes)
        policy.weights.backward(policy.networks["high"](x).sum())
        if processes.is_first:
            with policy.weights.use("old"):
                at = x.clone().requires_grad_()
                pulled = policy.weights.pull_back(policy.networks["high"](at), at, torch.full((1, 3), 2.0))
            assert_close(pulled, torch.tensor([[22.0, 24.0, 26.0]]))  # 2 (w + 10)
        turns.meet()
        assert_close(gradient(policy, "high"), 2 * x[0])
        disconnect(processes)

    on_processes(2, work)


def test_sets_of_shards_follow_and_change_places_as_whole_ones_do():
    def work():
        processes, policy = connect(), TwoNetworks()
        shard(policy, Prompt("a"), processes)
        weights = policy.weights
        weights.blend("old", "policy", 0.25)
        assert_close(whole(weights.tensors("old")["high"]), torch.tensor([3.5, 4.5, 5.5]))  # w + 10/4
        with weights.use("old"):
            put(weights.tensors("old")["high"], torch.tensor([7.0, 8.0, 9.0]))
            assert_close(whole(weights.parameters["high"].detach()), torch.tensor([7.0, 8.0, 9.0]))
            assert_close(whole(weights.tensors("policy")["high"]), torch.tensor([1.0, 2.0, 3.0]))
        assert_close(whole(weights.parameters["high"].detach()), torch.tensor([1.0, 2.0, 3.0]))
        assert_close(whole(weights.tensors("old")["high"]), torch.tensor([7.0, 8.0, 9.0]))
        disconnect(processes)

    on_processes(2, work)


class Broken(TwoNetworks):
    """Each of these cannot be cut."""

    def never_low(self):
        self.velocity = lambda x, sigma, condition: self.networks["high"](x)

    def more_trained(self):
        self.weights = NamedWeights({**self.weights.parameters, "bias": nn.Parameter(torch.zeros(3))})

    def hidden(self):
        del self.networks


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Broken.never_low, "'low' takes part at no noise level"),
        (Broken.more_trained, "the trained 'bias' is in none of the policy's networks"),
        (Broken.hidden, "Broken does not show its networks"),
    ],
)
def test_a_policy_that_cannot_be_cut_is_refused_before_anything_is(how, words):
    policy = Broken()
    how(policy)
    with pytest.raises(UserError, match=words):
        shard(policy, Prompt("a"), Processes(0, 2))


class Named(nn.Module):
    _repeated_blocks = ("Scale",)

    def __init__(self) -> None:
        super().__init__()
        self.others = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
        self.inside = nn.Sequential(Scale(), Scale())


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.ModuleList([Scale()])
        self.many = nn.ModuleList([Scale(), Scale()])


@pytest.mark.parametrize(("network", "found"), [(Named(), "inside"), (Unnamed(), "many")])
def test_blocks_are_those_that_a_network_names_or_its_longest_list(network, found):
    assert blocks_of(network) == list(getattr(network, found))
