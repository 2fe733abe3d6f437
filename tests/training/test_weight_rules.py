from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from thalweg.models import NamedWeights
from thalweg.training.folder.checkpoint import complete
from thalweg.training.loop import train
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
from training.small_runs import small

FAST, DELAYED, SLOW, RAISED, TRAILING = "fast", "delayed", "slow", "raised", "trailing"


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
        (RAISED, 0, 0.25),
        (RAISED, 100, 0.75),
        (RAISED, 1000, 0.999),
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
        after_iteration(weights, table, iteration, iteration)
        seen.append(values(weights))
    # 3/4 · 1;  1/2 · 0.75 + 1/2 · 2;  1/2 · 1.375 + 1/2 · 3
    assert seen == [[0, 0, 0.75], [0, 2, 1.375], [0, 2, 2.1875]]


def test_an_average_per_update_moves_with_updates_alone():
    parameter, weights, table = trained({"kind": "ema", "decay": 0.5, "per": "update"})
    parameter.data.fill_(4.0)
    after_iteration(weights, table, 1, 1)
    assert values(weights) == [0]
    after_update(weights, table, 1)
    assert values(weights) == [2]


def test_an_average_that_moves_once_an_iteration_rises_with_every_update():
    at_once, later = {"kind": "ema", "ramp": 0.25, "decay": 0.9}, {"kind": "ema", "decay": 1.0, "delay": 3}
    parameter, weights, table = trained(at_once, later)
    seen = []
    for iteration in (1, 2):  # of two updates each
        parameter.data.fill_(4.0 * iteration)
        for update in (1, 2):
            after_update(weights, table, 2 * iteration - 2 + update)
        after_iteration(weights, table, iteration, 2 * iteration)
        seen.append(values(weights))
    # keeps 2/4 and then 0.9;  copies after 2 updates, and stays after 4
    assert seen == [[2, 4], [0.9 * 2 + 0.1 * 8, 4]]


def test_a_run_counts_updates_where_its_averages_move_once_an_iteration(tiny_world, tmp_path):
    # A copy of the policy after the first iteration, of 2 updates; it stays after the second, of 4.
    overrides = {"iterations": 2, "optim.updates_per_iteration": 2, "run.save_every": 1, "run.keep_last": 2}
    old = {"weights.old.update": {"kind": "ema", "decay": 1.0, "delay": 3}}
    run = train(small("diffusion-nft", overrides | old), tmp_path / "run")
    saved = {
        (n, name): load_file(folder / f"weights.{name}.safetensors")
        for n, folder in enumerate(complete(run.path / "checkpoints"))
        for name in ("policy", "old")
    }
    assert_close(saved[0, "old"], saved[0, "policy"], rtol=0, atol=0)
    assert_close(saved[1, "old"], saved[0, "old"], rtol=0, atol=0)
    assert any((w != saved[0, "policy"][name]).any() for name, w in saved[1, "policy"].items())


def test_offline_weights_never_move():
    parameter, weights, table = trained("offline")
    parameter.data.fill_(4.0)
    after_update(weights, table, 1)
    after_iteration(weights, table, 1, 1)
    assert values(weights) == [0]


def test_a_set_may_follow_another():
    parameter = nn.Parameter(torch.zeros(1))
    weights = NamedWeights({"w": parameter})
    table = {
        "old": WeightRule.model_validate({"update": {"kind": "copy"}}),
        "slow": WeightRule.model_validate({"from": "old", "update": {"kind": "ema", "decay": 0.5}}),
    }
    add_named(weights, table)
    parameter.data.fill_(1.0)
    after_iteration(weights, table, 1, 1)
    assert values(weights) == [1, 0.5]


def test_names_stand_for_published_schedules():
    assert get_args(PresetName) == tuple(PRESETS)
    assert WeightRule.model_validate({"update": "frozen"}).update == Frozen()
    assert WeightRule.model_validate({"update": "copy"}).update == Copy()
    schema = WeightRule.model_json_schema()
    assert set(PRESETS) in [set(option.get("enum", ())) for option in schema["properties"]["update"]["anyOf"]]
