import pytest
import torch
from torch import nn
from torch.testing import assert_close

from thalweg.models import NamedWeights


def parameters() -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.tensor([1.0, 2.0])), "b": nn.Parameter(torch.tensor([3.0]))}


def test_the_table_starts_with_the_policy_alone():
    weights = NamedWeights(parameters())
    assert weights.names == ("policy",)
    assert weights.tensors("policy")["a"].tolist() == [1, 2]


def test_a_new_set_is_a_copy_that_later_changes_do_not_reach():
    weights = NamedWeights(parameters())
    weights.add("old")
    with torch.no_grad():
        weights.parameters["a"] += 10
    weights.add("later")
    weights.add("older", source="old")
    found = {name: weights.tensors(name)["a"].tolist() for name in weights.names}
    assert found == {"policy": [11, 12], "old": [1, 2], "later": [11, 12], "older": [1, 2]}


def test_the_named_set_acts_inside_the_block_and_the_policy_again_after_it():
    weights = NamedWeights(parameters())
    weights.add("old")
    with torch.no_grad():
        weights.parameters["a"] += 10
    with weights.use("old"):
        assert weights.parameters["a"].tolist() == [1, 2]
        assert weights.parameters["a"].requires_grad
        with weights.use("policy"):
            assert weights.parameters["a"].tolist() == [11, 12]
        assert weights.parameters["a"].tolist() == [1, 2]
    assert weights.parameters["a"].tolist() == [11, 12]


def test_the_policy_acts_again_after_an_error():
    weights = NamedWeights(parameters())
    weights.add("old")
    with torch.no_grad():
        weights.parameters["a"] += 10
    with pytest.raises(KeyError), weights.use("old"):
        raise KeyError
    assert weights.parameters["a"].tolist() == [11, 12]


def test_an_optimizer_step_moves_the_policy_and_no_other_set():
    weights = NamedWeights(parameters())
    weights.add("old")
    optimizer = torch.optim.SGD(weights.parameters.values(), lr=1.0)
    with weights.use("old"):
        pass
    weights.parameters["a"].sum().backward()
    optimizer.step()
    assert weights.tensors("policy")["a"].tolist() == [0, 1]
    assert weights.parameters["a"].tolist() == [0, 1]
    assert weights.tensors("old")["a"].tolist() == [1, 2]


def test_blending_keeps_a_share_of_the_set_and_takes_the_rest_from_the_source():
    weights = NamedWeights(parameters())
    weights.add("slow")
    with torch.no_grad():
        weights.parameters["a"] += torch.tensor([8.0, -4.0])
    weights.blend("slow", "policy", keep=0.75)
    assert weights.tensors("slow")["a"].tolist() == [3, 1]  # 3/4 · (1, 2) + 1/4 · (9, -2)
    assert weights.tensors("slow")["b"].tolist() == [3]
    weights.blend("slow", "policy", keep=1.0)
    assert weights.tensors("slow")["a"].tolist() == [3, 1]
    weights.blend("slow", "policy", keep=0.0)
    assert weights.tensors("slow")["a"].tolist() == [9, -2]
    assert weights.tensors("policy")["a"].tolist() == [9, -2]


def test_copying_leaves_nothing_of_what_was_there():
    weights = NamedWeights(parameters())
    weights.add("old")
    weights.tensors("old")["a"].fill_(torch.inf)  # an average would give NaN
    weights.blend("old", "policy", keep=0.0)
    assert weights.tensors("old")["a"].tolist() == [1, 2]


def test_a_name_can_be_given_once_and_must_be_known():
    weights = NamedWeights(parameters())
    weights.add("old")
    with pytest.raises(ValueError, match="weights 'old': the name is taken"):
        weights.add("old")
    with pytest.raises(ValueError, match="weights 'policy': the name is taken"):
        weights.add("policy")
    for attempt in (
        lambda: weights.tensors("odl"),
        lambda: weights.add("new", source="odl"),
        lambda: weights.blend("old", "odl", 0.5),
        lambda: weights.use("odl").__enter__(),
    ):
        with pytest.raises(ValueError, match="weights 'odl': no such set; the run has policy, old"):
            attempt()


def weights_and_graph():
    weights = NamedWeights(parameters())
    weights.add("old")
    return weights, weights.watch(weights.parameters["a"] * 2)


def test_switching_while_a_graph_waits_for_backward_is_an_error_that_says_why():
    weights, output = weights_and_graph()
    with (
        pytest.raises(RuntimeError, match=r"from 'policy' to 'old' while 1 network pass.*wait for backward"),
        weights.use("old"),
    ):
        pass
    assert output.requires_grad
    assert weights.parameters["a"].tolist() == [1, 2]


def test_after_backward_weights_may_be_switched():
    weights, output = weights_and_graph()
    output.sum().backward()
    with weights.use("old"):
        pass
    assert weights.parameters["a"].grad.tolist() == [2, 2]


def test_a_dropped_graph_does_not_hold_the_weights():
    weights, output = weights_and_graph()
    del output
    with weights.use("old"):
        pass


def test_every_open_graph_counts():
    weights, first = weights_and_graph()
    second = weights.watch(weights.parameters["a"] * 3)
    first.sum().backward()
    with pytest.raises(RuntimeError, match="while 1 network pass"), weights.use("old"):
        pass
    second.sum().backward()
    with weights.use("old"):
        pass


def test_a_graph_opened_under_a_named_set_must_be_closed_before_leaving_it():
    weights, output = weights_and_graph()
    output.sum().backward()
    with pytest.raises(RuntimeError, match="from 'old' to 'policy'"), weights.use("old"):
        output = weights.watch(weights.parameters["a"] * 2)


def test_using_the_active_set_is_no_switch():
    weights, output = weights_and_graph()
    with weights.use("policy"):
        pass
    output.sum().backward()


def test_watching_changes_neither_values_nor_gradients():
    weights = NamedWeights(parameters())
    with torch.no_grad():
        assert not weights.watch(weights.parameters["a"] * 2).requires_grad
    watched = weights.watch(weights.parameters["a"] ** 2)
    assert_close(watched, torch.tensor([1.0, 4.0]))
    (watched * torch.tensor([3.0, 5.0])).sum().backward()
    assert weights.parameters["a"].grad.tolist() == [6, 20]
