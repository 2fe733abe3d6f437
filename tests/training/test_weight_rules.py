from typing import get_args

import pytest
import torch
from torch import nn

from thalweg.models import NamedWeights
from thalweg.training.weight_rules import (
    EMA,
    PRESETS,
    Copy,
    Frozen,
    PresetName,
    WeightRule,
    add_named,
    after_iteration,
    after_update,
)

FAST, DELAYED, SLOW, TRAILING = "fast", "delayed", "slow", "trailing"
CRD = {"kind": "ema", "start": 0.25, "ramp": 0.005, "decay": 0.999}


@pytest.mark.parametrize(
    ("rule", "count", "kept"),
    [
        (FAST, 1, 0.02),
        (FAST, 10, 0.2),
        (FAST, 49, 0.98),
        (FAST, 1000, 0.99),
        (DELAYED, 74, 0.0),
        (DELAYED, 76, 0.0075),
        (DELAYED, 175, 0.75),
        (DELAYED, 500, 0.999),
        (SLOW, 100, 0.1),
        (SLOW, 1000, 0.5),
        (TRAILING, 100, 0.1),
        (TRAILING, 1000, 0.3),
        (CRD, 0, 0.25),
        (CRD, 100, 0.75),
        (CRD, 1000, 0.999),
        ({"kind": "ema", "decay": 0.5}, 1, 0.5),
        ({"kind": "ema", "decay": 0.5, "delay": 3}, 2, 0.0),
    ],
)
def test_the_kept_share_is_that_of_the_published_presets(rule, count, kept):
    update = WeightRule.model_validate({"update": rule}).update
    assert isinstance(update, EMA) and update.keep(count) == pytest.approx(kept)


def trained(*rules):
    """One number that training moves from 0, and the named sets after these rules, created at 0."""
    parameter = nn.Parameter(torch.zeros(1))
    weights = NamedWeights({"w": parameter})
    table = {f"set{n}": WeightRule.model_validate({"update": rule}) for n, rule in enumerate(rules)}
    add_named(weights, table)
    return parameter, weights, table


def values(weights):
    return [round(float(weights.tensors(name)["w"]), 6) for name in weights.names if name != "policy"]


def test_after_an_iteration_sets_stay_copy_or_follow():
    every_second = {"kind": "copy", "every": 2}
    ramped = {"kind": "ema", "ramp": 0.25, "decay": 0.5}  # keeps 1/4, 1/2, 1/2
    parameter, weights, table = trained({"kind": "frozen"}, every_second, ramped)
    seen = []
    for iteration in (1, 2, 3):
        parameter.data.fill_(float(iteration))
        after_update(weights, table, iteration)  # moves none of them
        after_iteration(weights, table, iteration)
        seen.append(values(weights))
    # 3/4 · 1;  1/2 · 0.75 + 1/2 · 2;  1/2 · 1.375 + 1/2 · 3
    assert seen == [[0, 0, 0.75], [0, 2, 1.375], [0, 2, 2.1875]]


def test_an_average_per_update_moves_with_updates_alone():
    parameter, weights, table = trained({"kind": "ema", "decay": 0.5, "per": "update"})
    parameter.data.fill_(4.0)
    after_iteration(weights, table, 1)
    assert values(weights) == [0]
    after_update(weights, table, 1)
    assert values(weights) == [2]


def test_a_set_may_follow_another():
    parameter = nn.Parameter(torch.zeros(1))
    weights = NamedWeights({"w": parameter})
    table = {
        "old": WeightRule.model_validate({"update": {"kind": "copy"}}),
        "slow": WeightRule.model_validate({"from": "old", "update": {"kind": "ema", "decay": 0.5}}),
    }
    add_named(weights, table)
    parameter.data.fill_(1.0)
    after_iteration(weights, table, 1)
    assert values(weights) == [1, 0.5]


def test_names_stand_for_published_schedules():
    assert get_args(PresetName) == tuple(PRESETS)
    assert WeightRule.model_validate({"update": "frozen"}).update == Frozen()
    assert WeightRule.model_validate({"update": "copy"}).update == Copy()
    schema = WeightRule.model_json_schema()
    assert set(PRESETS) in [set(option.get("enum", ())) for option in schema["properties"]["update"]["anyOf"]]
