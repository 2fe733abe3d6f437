"""Loss terms over all samples of a prompt: the same in any split over passes, updates and processes."""

import pytest
import torch
from torch.testing import assert_close

from thalweg.core.processes import Processes, connect, disconnect
from thalweg.core.values import Prompt, Transitions, columns_of, without_latents
from thalweg.flow import FlowSDE
from thalweg.objectives import Balance, Forward
from thalweg.objectives.contract import ReadsMeans
from thalweg.objectives.forward import Pull
from thalweg.objectives.rules import Centred, Preference, Ratio
from thalweg.objectives.surrogate import Regression
from thalweg.rollout import AllSteps, Rollout, Root, grow
from thalweg.training.backward import backward
from thalweg.training.recipe.load import load_recipe
from thalweg.training.units import needed, together
from training.several_processes import on_processes

PROMPTS = (Prompt("a", {"shift": 0.0}), Prompt("b", {"shift": 3.0}))
ROLLOUT = Rollout(plan=AllSteps(), group_size=4, steps=4, kernel=FlowSDE())
ROOTS = [Root(slot, group, slot * 4 + group, slot) for slot in (0, 1) for group in range(4)]
ADVANTAGES = torch.tensor([-1.5, 0.2, 1.6, -0.3, 0.9, -0.7, 0.6, -0.8])[:, None]
UNIFORM = Regression(weighting="uniform")
PULLS = (Pull(to="old", weight=0.3, advantage_weight=0.1, space="surrogate"),)
OBJECTIVES = {
    "pair": Forward(surrogate=UNIFORM, rule=Preference(beta=3.0), shared_in_group=True, pulls=PULLS),
    "group": Forward(
        surrogate=UNIFORM, rule=Preference(among="group", beta=3.0, stop_range=0.5), pulls=PULLS
    ),
    "centred": Forward(rule=Centred(), pulls=PULLS),
    "centred by softmax": Forward(rule=Centred(temperature=0.05), pulls=PULLS),
    "sample": Forward(rule=Ratio(spans="sample"), pulls=PULLS),
    "kl": Balance(form="kl"),
    "squares": Balance(form="squares"),
    "ratio": load_recipe("tmpo").objective,
}
ALONE = Processes()
WIDE = [name for name in OBJECTIVES if name != "sample"]
ANYWHERE = [(11, 13), (24, 0), (5, 9, 10)]
BETWEEN_SAMPLES = [(9, 15), (24, 0), (3, 12, 9)]  # 3 rows a sample


def experience(objective, policy):
    """Rows of 2 prompts x 4 samples in float64, and a policy after an update, between an old one, an average
    and a reference.
    """
    keep_mean = isinstance(objective, ReadsMeans) and objective.keeps_mean
    forest = grow(policy, PROMPTS, ROOTS, ROLLOUT, seed=0, iteration=0, keep_mean=keep_mean)
    rows = objective.experience(forest, forest.advantages(ADVANTAGES), seed=0, iteration=0)
    with torch.no_grad():  # an update, so that ratios are not 1
        policy.bias += torch.linspace(-0.5, 1.0, len(policy.bias))
    for name, offset in {"old": 0.02, "reference": -0.05, "ema": 0.03}.items():
        policy.weights.add(name)
        with torch.no_grad():
            policy.weights.tensors(name)["bias"] += offset
    there = {n: c for n, c in vars(rows).items() if c is not None}
    columns = {n: c.double() if c.is_floating_point() else c for n, c in there.items()}
    return type(rows)(**columns), forest.condition


def gradient(objective, policy, rows, condition, micro_batch, processes=ALONE):
    policy.bias.grad = None
    report = backward(objective, policy, rows, condition, micro_batch, 1 / 24, processes)
    return torch.zeros_like(policy.bias) if policy.bias.grad is None else policy.bias.grad, report


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_sweeps_give_the_gradient_of_one(name, linear_policy):
    objective, policy = OBJECTIVES[name], linear_policy((4,), torch.float64)
    rows, condition = experience(objective, policy)
    one, whole = gradient(objective, policy, rows, condition, 1000)
    assert one.abs().max() > 1e-5
    # Against plain differentiation of the loss of all rows at once.
    policy.bias.grad = None
    (objective.loss(_measured(objective, policy, rows, condition), rows)[0].sum() / 24).backward()
    assert_close(one, policy.bias.grad, rtol=1e-9, atol=1e-12)
    for micro_batch in (1, 7, 23):  # 3 rows a sample
        two, split = gradient(objective, policy, rows, condition, micro_batch)
        assert_close(two, one, rtol=1e-9, atol=1e-12)
        assert split.totals == pytest.approx(whole.totals, rel=1e-9)


def _measured(objective, policy, rows, condition):
    x, sigma = objective.inputs(rows)
    here = condition.index(rows.condition)
    anchors = {}
    for anchor in objective.anchors:
        with policy.weights.use(anchor), torch.no_grad():
            anchors[anchor] = policy.velocity(x, sigma, here)
    return objective.measure(rows, x, policy.velocity(x, sigma, here), anchors)


@pytest.mark.parametrize(
    ("name", "split"),
    [(name, split) for name in WIDE for split in ANYWHERE] + [("sample", split) for split in BETWEEN_SAMPLES],
    ids=str,
)
def test_groups_that_stand_on_several_processes_are_whole(name, split, linear_policy, tmp_path):
    objective, policy = OBJECTIVES[name], linear_policy((4,), torch.float64)
    rows, condition = experience(objective, policy)
    whole, report = gradient(objective, policy, rows, condition, 1000)
    edges = torch.tensor([0, *split]).cumsum(0)

    def work():
        processes = connect()
        mine = torch.arange(int(edges[processes.rank]), int(edges[processes.rank + 1]))
        found, seen = gradient(objective, policy, rows.index(mine), condition, 6, processes)
        processes.add([found])
        assert_close(found, whole, rtol=1e-9, atol=1e-12)
        means, expected = (r.means(p, 0.0) for r, p in ((seen, processes), (report, Processes())))
        assert means == pytest.approx(expected, rel=1e-9)
        disconnect(processes)

    on_processes(len(split), work)


def test_a_pair_costs_the_passes_of_its_two_samples_on_whatever_processes_they_stand(linear_policy):
    objective = OBJECTIVES["pair"].model_copy(update={"pulls": ()})
    policy = linear_policy((4,), torch.float64)
    rows, condition = experience(objective, policy)
    whole, _ = gradient(objective, policy, rows, condition, 1000)
    pairs = needed("pair", rows, Processes())
    samples = [int(rows.sample[3 * i]) for i in range(8)]
    # Best and worst of -1.5, .2, 1.6, -.3 and of .9, -.7, .6, -.8.
    assert sorted(set(pairs.sample.tolist())) == [samples[i] for i in (0, 2, 4, 7)]
    assert_close(gradient(objective, policy, pairs, condition, 1000)[0], whole, rtol=1e-9, atol=1e-12)
    assert needed("group", rows, Processes()) is rows

    def work():
        processes = connect()
        mine = torch.arange(24).tensor_split(2)[processes.rank]
        kept = needed("pair", rows.index(mine), processes)
        everyone = processes.gather({"sample": kept.sample})["sample"]
        assert everyone.tolist() == pairs.sample.tolist()
        disconnect(processes)

    on_processes(2, work)


def test_updates_split_by_prompt_where_a_loss_spans_a_prompt(linear_policy):
    rows, _ = experience(OBJECTIVES["sample"], linear_policy())
    assert together("group", rows) is rows.prompt_slot and together("pair", rows) is rows.prompt_slot
    assert together("sample", rows) is rows.sample and together("row", rows) is rows.sample


def test_what_is_sent_to_other_processes_has_no_latents(linear_policy):
    for name in ("group", "kl"):
        rows, _ = experience(OBJECTIVES[name], linear_policy())
        columns = columns_of(rows)
        assert {n for n, c in vars(rows).items() if c is not None and n not in columns} == (
            {"x", "x_next"} if isinstance(rows, Transitions) else {"x0", "noise"}
        )
        light = without_latents(rows.index(torch.arange(2)), columns)
        assert len(light) == 24 and all(vars(light)[n].numel() == 0 for n in ("x", "x0") if n in vars(light))
        assert_close(light.advantages, rows.advantages)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_incomplete_group_has_another_gradient(name, linear_policy):
    # What the tests above would see if a group were split, or a sample.
    objective, policy = OBJECTIVES[name], linear_policy((4,), torch.float64)
    rows, condition = experience(objective, policy)
    whole, _ = gradient(objective, policy, rows, condition, 1000)
    parts = [rows.index(part) for part in torch.arange(24).split(5 if name == "sample" else 6)]
    halves = [gradient(objective, policy, part, condition, 1000)[0] for part in parts]
    assert (torch.stack(halves).sum(0) - whole).abs().max() > 1e-4 * whole.abs().max()


@pytest.mark.parametrize("micro_batch", [7, 1000])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_sees_a_gradient_in_the_policys_velocity_alone(name, micro_batch, linear_policy):
    policy, seen = linear_policy((4,), torch.float64), list[bool]()

    class Watched(type(OBJECTIVES[name])):
        def measure(self, rows, x, velocity, anchors):
            constants = [*(c for c in vars(rows).values() if c is not None), x, *anchors.values()]
            assert not any(t.requires_grad for t in constants)
            seen.append(velocity.requires_grad)
            return super().measure(rows, x, velocity, anchors)

    objective = Watched.model_validate(OBJECTIVES[name].model_dump())
    rows, condition = experience(objective, policy)
    gradient(objective, policy, rows, condition, micro_batch)
    # 24 rows; 2 samples of 3 rows fit 7.
    once = micro_batch == 1000 or name == "sample"
    expected = [True] * (1 if micro_batch == 1000 else 4) if once else [False] * 4 + [True] * 4
    assert seen == expected
    assert all(policy.weights.tensors(name)["bias"].grad is None for name in ("old", "reference", "ema"))
