import pytest

from thalweg.core.forest import Child, count_passes
from thalweg.core.noise import Address
from thalweg.flow import FlowSDE
from thalweg.rollout import AllSteps, Branch, Candidates, Deterministic, Rollout, Tree, Window
from thalweg.rollout.plans import first_step

ODE, SDE = Child(stochastic=False), Child(stochastic=True, trained=True)


def at(iteration: int) -> Address:
    return Address(0, "selection", iteration)


def branch_steps(layout) -> list[int]:
    return [step for step, row in enumerate(layout) if any(child.trained for child in row[0])]


def test_all_steps_but_the_last_are_drawn_and_trained():
    assert AllSteps().layout(3, 1, at(0)) == ({0: (SDE,)}, {0: (SDE,)}, {0: (ODE,)})


def test_leaves_of_one_initial_noise_fork_at_the_first_drawn_step():
    assert AllSteps().layout(3, 2, at(0)) == ({0: (SDE, SDE)}, {0: (SDE,)}, {0: (ODE,)})
    late = Window(size=1, start=1, move="fixed").layout(4, 3, at(0))
    assert late == ({0: (ODE,)}, {0: (SDE, SDE, SDE)}, {0: (ODE,)}, {0: (ODE,)})


@pytest.mark.parametrize("leaves", [1, 4])
def test_a_window_of_all_steps_is_all_steps(leaves):
    for move in ("fixed", "progressive", "random"):
        window = Window(size=7, move=move).layout(8, leaves, at(3))
        assert window == AllSteps().layout(8, leaves, at(3))


def test_a_deterministic_plan_draws_nothing():
    assert Deterministic().layout(2, 1, at(0)) == ({0: (ODE,)}, {0: (ODE,)})
    assert [plan.stochastic for plan in (AllSteps(), Window(size=1), Deterministic())] == [True, True, False]


def test_a_branching_trunk_puts_out_samples_at_every_branch_step_and_then_ends():
    # Candidates 0 and 1, one step from each half, so both; 4 leaves, 2 from each.
    layout = Branch(num_branch_steps=2, last_step=1).layout(4, 4, at(0))
    branch, onwards = Child(stochastic=True, trained=True, role=1), Child(stochastic=False, role=1)
    assert layout == (
        {0: (branch, branch, ODE), 1: (onwards,)},
        {0: (branch, branch), 1: (onwards,)},
        {0: (), 1: (onwards,)},
        {0: (), 1: (onwards,)},
    )
    assert count_passes(layout) == (1 + (1 + 2) + 4 + 4, 4, 4)


def test_branch_steps_are_one_of_each_stratum_and_every_step_has_its_turn():
    plan = Branch(num_branch_steps=3, last_step=5)
    drawn = [branch_steps(plan.layout(8, 6, at(iteration))) for iteration in range(300)]
    assert all(a in (0, 1) and b in (2, 3) and c in (4, 5) for a, b, c in drawn)
    for step in range(6):  # each in half of 300 iterations, standard error 9
        assert abs(sum(step in steps for steps in drawn) - 150) < 40


def test_branch_steps_stop_before_the_last_step():
    everywhere = Branch(num_branch_steps=7)
    assert branch_steps(everywhere.layout(8, 7, at(0))) == [0, 1, 2, 3, 4, 5, 6]
    assert branch_steps(Branch(num_branch_steps=7, last_step=40).layout(8, 7, at(0))) == list(range(7))


@pytest.mark.parametrize(
    ("window", "starts"),
    # N = 8 with size 3: starts 0 .. 4 reach no further than step 6. Two iterations at each.
    [
        (Window(size=3, iterations_per_position=2), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0]),
        (Window(size=3, iterations_per_position=2, stride=2), [0, 0, 2, 2, 4, 4, 0, 0, 2, 2, 4, 4]),
        (Window(size=3, iterations_per_position=2, start=3), [3, 3, 4, 4, 3, 3, 4, 4, 3, 3, 4, 4]),
        (Window(size=3, iterations_per_position=2, positions=2), [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]),
        (Window(size=3, iterations_per_position=2, start=2, move="fixed"), [2] * 12),
    ],
)
def test_a_window_moves_from_noise_to_data_and_returns(window, starts):
    assert [first_step(window, window.size, 8, at(iteration)) for iteration in range(12)] == starts
    assert branch_steps(window.layout(8, 1, at(4))) == [starts[4], starts[4] + 1, starts[4] + 2]


def test_a_random_window_visits_all_its_positions_equally():
    window = Window(size=2, move="random", start=1, positions=4)
    drawn = [first_step(window, window.size, 8, at(iteration)) for iteration in range(400)]
    assert set(drawn) == {1, 2, 3, 4}
    for start in (1, 2, 3, 4):  # 100 each, standard error 9
        assert abs(drawn.count(start) - 100) < 40
    assert drawn == [first_step(window, window.size, 8, at(iteration)) for iteration in range(400)]


def test_clean_windows_can_take_fewer_iterations_and_the_last_one_may_stay():
    # tau = 4 at l = 0 and 1, then ceil(4 e^-.5) = 3 and ceil(4 e^-1) = 2.
    numbers = {
        "size": 2,
        "positions": 4,
        "iterations_per_position": 4,
        "position_decay": 0.5,
        "decay_from": 1,
    }
    once = [0] * 4 + [1] * 4 + [2] * 3 + [3] * 2
    for returns, after in ((True, [0, 0, 0]), (False, [3, 3, 3])):
        window = Window(returns=returns, **numbers)
        assert [first_step(window, 2, 8, at(iteration)) for iteration in range(16)] == once + after


def test_early_windows_are_drawn_by_a_geometric_law():
    plan = Tree(branching=2, size=2, move="early", early_share=0.5)
    drawn = [first_step(plan, 2, 6, at(iteration)) for iteration in range(1500)]
    # Starts 0 .. 3 with shares 8, 4, 2, 1 of 15; standard deviation at most 20.
    for start, share in enumerate((8, 4, 2, 1)):
        assert abs(drawn.count(start) - 1500 * share / 15) < 70


def test_prompts_draw_windows_of_their_own_which_their_samples_share():
    plan = Window(size=1, move="random", per_prompt=True)
    rollout = Rollout(plan=plan, group_size=4, steps=8, kernel=FlowSDE())
    starts = [branch_steps(rollout.layout(0, 3, slot))[0] for slot in range(40)]
    assert starts == [branch_steps(rollout.layout(0, 3, slot))[0] for slot in range(40)]
    assert set(starts) == set(range(7))
    shared = rollout.model_copy(update={"plan": Window(size=1, move="random")})
    assert len({branch_steps(shared.layout(0, 3, slot))[0] for slot in range(40)}) == 1
    later = [branch_steps(rollout.layout(0, 4, slot))[0] for slot in range(40)]
    assert sum(a != b for a, b in zip(starts, later, strict=True)) > 20


def test_a_tree_forks_inside_its_window_with_noise_that_grows_and_a_spread_at_forks():
    plan = Tree(branching=2, forks=(0, 2), size=4, start=1, move="fixed", noise_growth=0.5, fork_spread=4.0)
    layout = [row[0] for row in plan.layout(7, 4, at(0))]

    def child(noise, spread):
        return Child(stochastic=True, trained=True, noise=noise, spread=spread)

    window = [(child(1.0, 4.0),) * 2, (child(1.0, 1.0),), (child(1.5, 4.0),) * 2, (child(1.5, 1.0),)]
    assert layout == [(ODE,), *window, (ODE,), (ODE,)]
    # Of four forks with growth .5: 1, 1 + .5/3, 1 + 1/3, 1.5.
    factors = [row[0][0].noise for row in Tree(branching=2, noise_growth=0.5).layout(5, 16, at(0))[:4]]
    assert factors == pytest.approx([1, 7 / 6, 4 / 3, 1.5])


def test_branch_mix_draws_its_forks_and_the_first_steps():
    # 20 steps, forks at 0, 3, 6, 9 and a window of 4 at the start: BranchGRPO's code.
    plan = Tree(branching=2, forks=(0, 3, 6, 9), drawn="forks", drawn_first=4)
    layout = plan.layout(20, 16, at(0))
    assert branch_steps(layout) == [0, 1, 2, 3, 6, 9]
    assert [len(row[0]) for row in layout] == [2 if step in (0, 3, 6, 9) else 1 for step in range(20)]
    with pytest.raises(
        ValueError, match="drawn_first=4: drawn=all draws every step already; set drawn=forks"
    ):
        Tree(branching=2, drawn_first=4)


def test_one_candidate_of_each_step_goes_on():
    layout = Candidates(num_candidates=3).layout(3, 1, at(0))
    end = Child(stochastic=True, trained=True, role=1)
    assert layout == ({0: (SDE, end, end), 1: ()}, {0: (SDE, end, end), 1: ()}, {0: (ODE,), 1: ()})
    assert count_passes(layout) == (3, 6, 1)


@pytest.mark.parametrize("num_steps", [2, 5, 8])
@pytest.mark.parametrize(
    "plan", [AllSteps(), Window(size=1), Window(size=1, move="random"), Branch(num_branch_steps=1)]
)
def test_the_last_step_is_never_drawn_or_trained(plan, num_steps):
    for iteration in range(30):
        last = plan.layout(num_steps, 2, at(iteration))[-1]
        assert not any(child.stochastic or child.trained for row in last.values() for child in row)
