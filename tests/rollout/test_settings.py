import pytest
from pydantic import ValidationError

from thalweg.flow import DPMSolver, FlowSDE, Heun
from thalweg.rollout import AllSteps, Branch, Deterministic, Rollout, Root, Window, grow

STOCHASTIC = {"group_size": 12, "steps": 8, "kernel": FlowSDE()}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"plan": Window(size=8), **STOCHASTIC}, "size=8 from start=0 reaches past step 6"),
        ({"plan": Window(size=3, start=5), **STOCHASTIC}, "size=3 from start=5 reaches past step 6"),
        ({"plan": AllSteps(), **STOCHASTIC, "steps": 1}, "rollout.steps=1: the last step is never trained"),
        (
            {"plan": Branch(num_branch_steps=5), **STOCHASTIC, "seed_groups": 1},
            "num_branch_steps=5 does not divide the 12 samples",
        ),
        (
            {"plan": Branch(num_branch_steps=2), **STOCHASTIC},
            "num_branch_steps=2 does not divide the 1 samples",
        ),
        (
            {"plan": Branch(num_branch_steps=8), **STOCHASTIC, "group_size": 8, "seed_groups": 1},
            "num_branch_steps=8: only 7 steps may branch",
        ),
        (
            {"plan": Branch(num_branch_steps=4, last_step=2), **STOCHASTIC, "seed_groups": 1},
            "num_branch_steps=4: only 3 steps may branch",
        ),
        ({"plan": AllSteps(), **STOCHASTIC, "seed_groups": 5}, "seed_groups=5 does not divide group_size=12"),
        ({"plan": AllSteps(), "group_size": 12, "steps": 8}, "kernel is missing: the plan 'all_steps'"),
        ({"plan": Deterministic(), **STOCHASTIC}, "kernel 'flow_sde' would never act"),
        ({"plan": AllSteps(), **STOCHASTIC, "solver": Heun()}, "solver 'heun' takes two calls a step"),
        (
            {"plan": Deterministic(), "group_size": 12, "steps": 8, "seed_groups": 1},
            "one sample for each initial noise, not 12",
        ),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_in_one_line(settings, complaint):
    with pytest.raises(ValidationError) as refused:
        Rollout(**settings)
    (problem,) = refused.value.errors()
    assert complaint in problem["msg"] and "\n" not in problem["msg"]


@pytest.mark.parametrize("key", [{"plan": {"kind": "window", "size": 0}}, {"group_size": 0}, {"steps": 0}])
def test_counts_are_positive(key):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Rollout(**({"plan": AllSteps(), **STOCHASTIC} | key))


def test_each_sample_has_its_own_initial_noise_unless_told_otherwise():
    assert Rollout(plan=AllSteps(), **STOCHASTIC).num_roots == 12
    assert Rollout(plan=AllSteps(), **STOCHASTIC, seed_groups=3).num_roots == 3


@pytest.mark.parametrize(
    ("settings", "passes", "trained"),
    [
        # Every sample by itself: G · N passes, G (N-1) trained steps.
        ({"plan": AllSteps(), **STOCHASTIC}, 12 * 8, 12 * 7),
        # One initial noise: its first pass is shared.
        ({"plan": AllSteps(), **STOCHASTIC, "seed_groups": 1}, 1 + 12 * 7, 12 * 7),
        ({"plan": AllSteps(), **STOCHASTIC, "seed_groups": 4}, 4 * (1 + 3 * 7), 12 * 7),
        # l + 1 shared passes, then G a step.
        ({"plan": Window(size=3, start=2, move="fixed"), **STOCHASTIC, "seed_groups": 1}, 3 + 12 * 5, 36),
        ({"plan": Window(size=3, start=2, move="fixed"), **STOCHASTIC}, 12 * 8, 36),
        # A trunk of 2 passes; 6 branches from step 0 take 7 more each, 6 from step 1 take 6.
        (
            {"plan": Branch(num_branch_steps=2, last_step=1), **STOCHASTIC, "seed_groups": 1},
            2 + 6 * 7 + 6 * 6,
            12,
        ),
        (
            {"plan": Branch(num_branch_steps=2, last_step=1), **STOCHASTIC, "seed_groups": 3},
            3 * (2 + 2 * 7 + 2 * 6),
            12,
        ),
        ({"plan": Deterministic(), "group_size": 12, "steps": 8}, 12 * 8, 0),
        ({"plan": Deterministic(), "group_size": 12, "steps": 8, "solver": DPMSolver()}, 12 * 8, 0),
        # Two calls a step, one at the last.
        ({"plan": Deterministic(), "group_size": 12, "steps": 8, "solver": Heun()}, 12 * 15, 0),
    ],
)
def test_the_passes_of_a_prompt_are_known_beforehand_and_counted_alike(
    settings, passes, trained, linear_policy, prompts
):
    rollout, policy = Rollout(**settings), linear_policy()
    assert rollout.passes(0, 0, 1) == (passes, trained)
    roots = [
        Root(slot, group, slot * rollout.num_roots + group, slot)
        for slot in (0, 1)
        for group in range(rollout.num_roots)
    ]
    forest = grow(policy, prompts[:2], roots, rollout, seed=0, iteration=0)
    assert policy.passes.evaluations == 2 * passes
    assert sum(int(level.trained.sum()) for level in forest.levels) == 2 * trained
    assert len(forest.leaves) == 2 * 12
