"""The closed form of credit: 1-D data N(0, 1/4), exact flow, Flow-SDE a = .7, shift 3, N = 10, reward x_N.

Every step is affine, x' = c x + s z - J theta, so dE[x_N]/d theta_j = -J_j G_j, where G_j is the product of
the later factors, and credit A_j is unbiased if E[A_j z_j] / s_j = G_j. The baseline of a group of G holds
the sample itself, which shrinks the expectation by 1 - 1/G.
"""

import math
from itertools import pairwise

import pytest
import torch

from thalweg.core.forest import Leaves, Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt, Transitions
from thalweg.credit import DenseCredit, GroupCredit, ProcessCredit
from thalweg.credit.tree import aggregate
from thalweg.flow import FlowSDE
from thalweg.objectives.path_rows import transitions
from thalweg.rollout import AllSteps, Branch, Candidates, Rollout, Root, Tree, Window, grow

TERMINAL = [0.094, 0.142, 0.181, 0.223, 0.275, 0.346, 0.453, 0.631, 0.923]
BY_ODE = [0.383, 0.400, 0.422, 0.450, 0.488, 0.541, 0.621, 0.746, 0.923]
COMMON = {"steps": 10, "kernel": FlowSDE(noise_level=0.7)}


def estimate(linear_policy, replicas, plan, group_by=("prompt",), **settings) -> dict[int, float]:
    """E[A_j z_j] / s_j for every trained step.

    Latent elements do not see each other: each is a replica of the 1-D problem, with groups of its own.
    """
    rollout = Rollout(plan=plan, **COMMON, **settings)
    roots = [Root(0, group, group, 0) for group in range(rollout.num_roots)]
    forest = grow(linear_policy((replicas,)), [Prompt("")], roots, rollout, seed=0, iteration=0)

    replica = torch.arange(replicas).repeat(len(forest.leaves))
    columns = {name: column.repeat_interleave(replicas) for name, column in vars(forest.leaves).items()}
    leaves = Leaves(**{**columns, "prompt_slot": replica})
    credit = GroupCredit(std="none", limit=None, group_by=group_by)
    advantages = credit.advantages({"r": forest.latents.flatten()}, {"r": 1.0}, leaves)
    own = advantages.view(len(forest.leaves), replicas)
    return slopes(transitions(forest, forest.advantages(own)), rollout)


def slopes(rows: Transitions, rollout: Rollout) -> dict[int, float]:
    """E[A_j z_j] / s_j of rows, for every trained step."""
    sigmas, found = rollout.sigmas().tolist(), {}
    for step in sorted(set(rows.step.tolist())):
        of = rows.step == step
        c, s = affine(*list(pairwise(sigmas))[step])
        z = (rows.x_next[of] - c * rows.x[of]) / s
        found[step] = ((rows.advantages[of] * z).mean() / s).item()
    return found


def affine(sigma: float, sigma_next: float) -> tuple[float, float]:
    """c and s of Flow-GRPO's step under the exact flow, in the form the authors code it."""
    delta, slope = sigma - sigma_next, (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)
    g2 = 0.49 * sigma / (1 - (sigma_next if sigma == 1 else sigma))
    c = 1 - g2 * delta / (2 * sigma) - slope * delta * (1 + g2 * (1 - sigma) / (2 * sigma))
    return c, math.sqrt(g2 * delta)


@pytest.mark.parametrize("shared", [None, 1, 4])
def test_terminal_credit_of_all_steps_is_the_gradient_of_the_drawn_rollout(shared, linear_policy):
    got = estimate(linear_policy, 40_000, AllSteps(), group_size=8, seed_groups=shared)
    # 320 000 samples with a signal-to-noise of .16 at the first step: standard error 1 %.
    for step, expected in enumerate(TERMINAL):
        assert got[step] == pytest.approx(expected * (1 - 1 / 8), rel=0.045, abs=0.003)


@pytest.mark.parametrize("step", [0, 2, 4, 6, 8])
def test_credit_of_a_window_of_one_step_is_the_gradient_before_an_ode(step, linear_policy):
    window = Window(size=1, start=step, move="fixed")
    got = estimate(linear_policy, 15_000, window, group_size=4, seed_groups=1)
    assert got == {step: pytest.approx(BY_ODE[step] * (1 - 1 / 4), rel=0.03)}


def test_credit_of_branches_is_the_gradient_before_an_ode(linear_policy):
    plan = Branch(num_branch_steps=9)
    keys = ("prompt", "seed", "fork")
    got = estimate(linear_policy, 15_000, plan, keys, group_size=36, seed_groups=1)
    assert list(got) == list(range(9))
    for step, expected in enumerate(BY_ODE):
        assert got[step] == pytest.approx(expected * (1 - 1 / 4), rel=0.03)


def one_element(linear_policy, rollout):
    roots = [Root(0, group, group, 0) for group in range(rollout.num_roots)]
    return grow(linear_policy((1,)), [Prompt("")], roots, rollout, seed=0, iteration=0)


def test_credit_by_probes_is_the_gradient_before_an_ode_or_of_the_drawn_rollout(linear_policy):
    rollout = Rollout(plan=AllSteps(), group_size=1000, probes=True, **COMMON)
    forest = one_element(linear_policy, rollout)
    scores = Scores({"r": forest.latents.flatten()}, probes={"r": forest.probe_latents.flatten()})
    got = {}
    for credit in ("gain", "return_to_go"):
        dense = DenseCredit(credit=credit, std="none", limit=None)
        advantages = dense.assign(forest, scores, {"r": 1.0}, Processes())
        got[credit] = slopes(transitions(forest, advantages), rollout)
    for step in range(9):
        # Signal-to-noise .7: standard error 4.6 %; the return to go adds what later steps do: .035.
        assert got["gain"][step] == pytest.approx(BY_ODE[step], rel=0.15)
        assert got["return_to_go"][step] == pytest.approx(TERMINAL[step], abs=0.09)


@pytest.mark.parametrize("start", [0, 4])
def test_credit_of_a_trees_edges_is_the_gradient_of_what_grows_below(start, linear_policy):
    # A tree's own leaves are the baseline: a share 1/3^level of them lies below an edge itself.
    replicas = 4000
    plan = Tree(branching=3, size=3, start=start, move="fixed")
    rollout = Rollout(plan=plan, group_size=27, seed_groups=1, **COMMON)
    forest = grow(linear_policy((replicas,)), [Prompt("")], [Root(0, 0, 0, 0)], rollout, seed=0, iteration=0)
    values = aggregate(forest, forest.latents - forest.latents.mean(0), "mean")
    sigmas = list(pairwise(rollout.sigmas().tolist()))
    after = math.prod(ode_factor(*sigmas[m]) for m in range(start + 3, 10))
    for level in (1, 2, 3):
        step = start + level - 1
        c, s = affine(*sigmas[step])
        below, above = forest.levels[step + 1], forest.levels[step]
        z = (below.latents[below.row] - c * above.latents[above.row[below.parent]]) / s
        G = after * math.prod(affine(*sigmas[m])[0] for m in range(step + 1, start + 3))
        got = (values[step + 1] * z).mean().item() / s
        assert got == pytest.approx(G * (1 - 1 / 3**level), rel=0.05)


def test_credit_of_candidates_by_their_exact_value_is_the_slope_of_that_value(linear_policy):
    # V(x, sigma), the end of the deterministic way from x, is linear: its slope is row BY_ODE.
    rollout = Rollout(plan=Candidates(num_candidates=6), group_size=300, **COMMON)
    forest = one_element(linear_policy, rollout)
    values = tuple(
        torch.full((len(level.parent),), torch.nan)
        if not level.trained.any()
        else BY_ODE[at - 1] * level.latents[level.row, 0]
        for at, level in enumerate(forest.levels)
    )
    credit = ProcessCredit(outcome_weight=0, compare="siblings", std="none", limit=None)
    scores = Scores({"r": torch.zeros(300)}, {"v": values})
    advantages = credit.assign(forest, scores, {"r": 1.0, "v": 1.0}, Processes())
    got = slopes(transitions(forest, advantages), rollout)
    assert list(got) == list(range(9))
    for step, slope in enumerate(BY_ODE):
        assert got[step] == pytest.approx(slope * (1 - 1 / 6), rel=0.13)  # standard error 3.5 %


def ode_factor(sigma: float, sigma_next: float) -> float:
    """What Euler's step of the exact flow multiplies x by."""
    slope = (sigma - (1 - sigma) / 4) / ((1 - sigma) ** 2 / 4 + sigma**2)
    return 1 - slope * (sigma - sigma_next)
