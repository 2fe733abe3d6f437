"""The closed form of credit: 1-D data N(0, 1/4), exact flow, Flow-SDE a = .7, shift 3, N = 10, reward x_N.

Every step is affine, x' = c x + s z - J theta, so dE[x_N]/d theta_j = -J_j G_j, where G_j is the product of
the later factors, and credit A_j is unbiased if E[A_j z_j] / s_j = G_j. The baseline of a group of G holds
the sample itself, which shrinks the expectation by 1 - 1/G.
"""

import math
from itertools import pairwise

import pytest
import torch

from thalweg.core.forest import Leaves
from thalweg.core.values import Prompt
from thalweg.credit import GroupCredit
from thalweg.flow import FlowSDE
from thalweg.objectives.path_rows import transitions
from thalweg.rollout import AllSteps, Branch, Rollout, Root, Window, grow

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
    rows = transitions(forest, forest.advantages(own))

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
