import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from thalweg.models import NamedWeights
from thalweg.training.weight_rules import (
    EMA,
    Copy,
    Frozen,
    Rounded,
    WeightRule,
    add_named,
    after_iteration,
    after_update,
)


def weights_of(value: float = 0.0) -> NamedWeights:
    return NamedWeights({"w": nn.Parameter(torch.tensor([value], dtype=torch.float64))})


def value(weights: NamedWeights, name: str) -> float:
    return weights.tensors(name)["w"].item()


def put(weights: NamedWeights, number: float) -> None:
    with torch.no_grad():
        weights.parameters["w"].fill_(number)


@pytest.mark.parametrize(
    ("rule", "kept"),
    # What DiffusionNFT keeps of its old policy after n updates.
    [
        (EMA(ramp=0.001, decay=0.5), {0: 0, 100: 0.1, 500: 0.5, 900: 0.5}),
        (EMA(ramp=0.0075, decay=0.999, delay=75), {0: 0, 74: 0, 75: 0, 76: 0.0075, 175: 0.75, 300: 0.999}),
        (EMA(ramp=0.02, decay=0.99), {0: 0, 1: 0.02, 10: 0.2, 49: 0.98, 50: 0.99}),
        (EMA(decay=0.9), {0: 0.9, 1: 0.9, 1000: 0.9}),
        (EMA(decay=0.9, delay=3), {2: 0, 3: 0.9}),
        (EMA(decay=1.0), {5: 1.0}),
    ],
)
def test_an_average_keeps_the_published_share(rule, kept):
    assert {n: rule.keep(n) for n in kept} == pytest.approx(kept)


def test_an_average_follows_the_policy_after_every_iteration():
    weights, rules = weights_of(0.0), {"slow": WeightRule(update=EMA(decay=0.5))}
    add_named(weights, rules)
    put(weights, 8.0)
    found = []
    for iteration in (1, 2, 3):
        after_update(weights, rules, iteration)
        after_iteration(weights, rules, iteration, iteration)
        found.append(value(weights, "slow"))
    assert found == [4, 6, 7]
    assert value(weights, "policy") == 8


def test_an_average_by_update_moves_with_updates_alone():
    weights, rules = weights_of(0.0), {"slow": WeightRule(update=EMA(ramp=0.25, decay=0.9, per="update"))}
    add_named(weights, rules)
    put(weights, 8.0)
    after_iteration(weights, rules, 2, 2)
    assert value(weights, "slow") == 0
    after_update(weights, rules, 2)  # keeps .25 · 2
    assert value(weights, "slow") == 4
    after_update(weights, rules, 3)  # keeps .75
    assert value(weights, "slow") == 5


def test_a_copy_is_taken_every_so_often():
    weights, rules = weights_of(0.0), {"old": WeightRule(update=Copy(every=3))}
    add_named(weights, rules)
    found = []
    for iteration in range(1, 8):
        put(weights, float(iteration))
        after_update(weights, rules, iteration)
        after_iteration(weights, rules, iteration, iteration)
        found.append(value(weights, "old"))
    assert found == [0, 0, 3, 3, 3, 6, 6]


def test_frozen_weights_stay_what_they_were():
    weights, rules = weights_of(2.0), {"reference": WeightRule(update=Frozen())}
    add_named(weights, rules)
    put(weights, 5.0)
    for count in range(1, 4):
        after_update(weights, rules, count)
        after_iteration(weights, rules, count, count)
    assert value(weights, "reference") == 2


def test_a_set_may_follow_another_set():
    rules = {
        "old": WeightRule(update=Copy()),
        "older": WeightRule.model_validate({"from": "old", "update": {"kind": "ema", "decay": 0.5}}),
    }
    weights = weights_of(0.0)
    add_named(weights, rules)
    put(weights, 8.0)
    after_iteration(weights, rules, 1, 1)
    assert (value(weights, "old"), value(weights, "older")) == (8, 4)


def test_a_set_starts_from_the_one_it_follows():
    weights = weights_of(1.0)
    weights.add("base")
    put(weights, 5.0)
    rule = {"from": "base", "update": {"kind": "frozen"}}
    add_named(weights, {"reference": WeightRule.model_validate(rule), "old": WeightRule(update=Copy())})
    assert (value(weights, "reference"), value(weights, "old")) == (1, 5)


def test_a_rounded_set_is_its_source_in_low_precision_from_the_start():
    # int8 of one block: the largest value is 127 units, 1 = 12.7 units is held as 13.
    def held(largest, *others):
        return [largest, *(round(x / largest * 127) * largest / 127 for x in others)]

    weights = NamedWeights({"w": nn.Parameter(torch.tensor([10.0, 1.0, -3.3]))})
    rules = {"cheap": WeightRule(update=Rounded(format="int8", block_size=4))}
    add_named(weights, rules)
    assert weights.tensors("cheap")["w"].tolist() == pytest.approx(held(10.0, 1.0, -3.3))
    with torch.no_grad():
        weights.parameters["w"].copy_(torch.tensor([5.0, 2.0, -0.01]))
    after_update(weights, rules, 1)
    assert weights.tensors("cheap")["w"].tolist() == pytest.approx(held(10.0, 1.0, -3.3))
    after_iteration(weights, rules, 1, 1)
    assert weights.tensors("cheap")["w"].tolist() == pytest.approx(held(5.0, 2.0, -0.01))
    assert weights.tensors("policy")["w"].tolist() == pytest.approx([5.0, 2.0, -0.01])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "ema"},
        {"kind": "ema", "decay": 1.5},
        {"kind": "ema", "decay": 0.5, "ramp": 0},
        {"kind": "copy", "every": 0},
        {"kind": "frozen", "decay": 0.5},
        {"kind": "average"},
        {"kind": "rounded", "format": "fp8"},
        {"kind": "rounded", "block_size": 0},
    ],
)
def test_rules_without_meaning_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(WeightRule).validate_python({"update": wrong})
