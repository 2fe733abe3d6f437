import pytest
from pydantic import ValidationError

from thalweg.core.values import Prompt
from thalweg.flow import DPMSolver, Euler, FlowSDE, Heun, Shifted, Uniform
from thalweg.rollout import (
    AllSteps,
    Branch,
    Candidates,
    Deterministic,
    Explore,
    Guidance,
    Rollout,
    Root,
    Tree,
    Window,
    grow,
)
from thalweg.rollout.plans import last_drawn

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
        (
            {"plan": Tree(branching=2, forks=(0, 7)), **STOCHASTIC, "seed_groups": 3},
            "fork steps lie in the window, 0 .. 6",
        ),
        (
            {"plan": Tree(branching=2, size=3), **STOCHASTIC, "seed_groups": 1},
            "branching=2 at 3 steps ends in 8 samples, and group_size / seed_groups is 12",
        ),
        (
            {"plan": Candidates(num_candidates=3), **STOCHASTIC, "seed_groups": 1},
            "a root ends in one sample, not 12",
        ),
        (
            {"plan": Window(size=1, move="random", per_prompt=True), **STOCHASTIC, "tail": 0.5},
            "tail shortens what follows the last drawn step, one for all prompts",
        ),
        (
            {"plan": Deterministic(), "group_size": 12, "steps": 8, "probes": True},
            "probes score the states of drawn steps",
        ),
        (
            {"plan": Deterministic(), "group_size": 12, "steps": 8, "guidance": Guidance(reward="r")},
            "guidance steers drawn steps",
        ),
        (
            {"plan": Deterministic(), "group_size": 12, "steps": 8, "explore": Explore(pool=8, steps=2)},
            "explore.pool=8: fewer than the 12 initial noises",
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


@pytest.mark.parametrize("schedule", [Uniform(), Shifted(shift=3.0)])
@pytest.mark.parametrize("tail", [0.01, 0.2, 0.4, 0.7, 1.0])
def test_a_shortened_tail_ends_at_zero_wherever_the_window_lies_and_keeps_what_comes_before(schedule, tail):
    plan = Window(size=4, move="progressive", iterations_per_position=1)
    settings = {"group_size": 12, "kernel": FlowSDE(), "schedule": schedule, "steps": 25}
    rollout = Rollout(plan=plan, tail=tail, **settings)
    for iteration in range(21):
        last = iteration + 3
        sigmas, whole = rollout.sigmas(0, iteration), schedule.sigmas(25)
        assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert sigmas[: last + 2].tolist() == whole[: last + 2].tolist()
        # n = max(int((N - L) r), 2) points, the first of which is there already.
        assert len(sigmas) == last + 2 + max(int((25 - last) * tail), 2) - 1
        if tail == 1:
            assert sigmas.tolist() == pytest.approx(whole.tolist(), abs=1e-6)
        layout = rollout.layout(0, iteration)
        assert len(layout) == len(sigmas) - 1 and last_drawn(layout) == last


def test_the_published_tail_takes_eleven_calls():
    # N = 25, window 0 .. 3: Flash (.4) 3 + 8, Flash* (.2) 3 + 4.
    for tail, calls in ((0.4, 11), (0.2, 7)):
        rollout = Rollout(plan=Window(size=4), tail=tail, group_size=12, steps=25, kernel=FlowSDE())
        assert len(rollout.sigmas(0, 0)) - 1 == calls


@pytest.mark.parametrize(("solver", "low", "high"), [(DPMSolver(), 0.0, 0.01), (Euler(), 0.05, 0.1)])
def test_a_short_tail_of_second_order_ends_near_the_exact_flow(solver, low, high, linear_policy):
    # The flow of N(0, 1/4) scales x as the standard deviation at its noise level. Of 97 steps 38 stay.
    plan, roots = Window(size=3, move="fixed"), [Root(0, group, group, 0) for group in range(8)]
    rollout = Rollout(plan=plan, group_size=8, steps=100, tail=0.4, kernel=FlowSDE(), solver=solver)
    forest = grow(linear_policy(), [Prompt("")], roots, rollout, seed=0, iteration=0)
    sigma, left = float(forest.levels[3].sigma[0]), forest.levels[3].latents
    exact = left * 0.5 / ((1 - sigma) ** 2 / 4 + sigma**2) ** 0.5
    gap = ((forest.latents - exact).abs().max() / exact.abs().max()).item()
    assert low <= gap < high
