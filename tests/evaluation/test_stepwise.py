from itertools import pairwise

import torch
from torch.testing import assert_close

from thalweg.core.noise import Address
from thalweg.core.values import Prompt
from thalweg.evaluation.stepwise import Stepwise, sample_stepwise
from thalweg.flow import CPS, FlowSDE
from thalweg.rollout import Root

PROMPTS = [Prompt("a", {"shift": -1.0}), Prompt("b", {"shift": 2.0})]
ROOTS = [Root(0, 0, 0, 0), Root(0, 1, 1, 0), Root(1, 0, 2, 1)]
SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])


def first(x, sigma, prompts):
    """Worth: the first element, further from data the less, and twice as much under the second prompt."""
    return x[:, 0] * (1 - sigma) * torch.tensor([1.0 + (p.text == "b") for p in prompts])


def sampled(policy, value=first, **settings):
    how = Stepwise(**({"reward": "r", "num_candidates": 3} | settings))
    return sample_stepwise(policy, PROMPTS, ROOTS, how, value, SIGMAS, seed=5, micro_batch=2)


@torch.no_grad()
def test_every_step_goes_on_with_the_best_of_its_candidates(linear_policy):
    policy = linear_policy((2,))
    for row, root in enumerate(ROOTS):
        condition = policy.encode(PROMPTS).index(torch.tensor([root.condition]))
        x = Address(5, "initial", 0, root.prompt_slot, root.seed_group).normal((1, 2))
        for step in range(3):
            sigma, sigma_next = SIGMAS[step], SIGMAS[step + 1]
            velocity = policy.velocity(x, sigma[None], condition)
            transition = FlowSDE().transition(x, velocity, sigma, sigma_next)
            slot, group = root.prompt_slot, root.seed_group
            draws = [Address(5, "transition", 0, slot, group, (k,), step).normal((1, 2)) for k in range(3)]
            candidates = [transition.sample(z) for z in draws]
            x = max(candidates, key=lambda c: float(c[0, 0]))
        x = x - 0.25 * policy.velocity(x, SIGMAS[3:4], condition)
        assert_close(sampled(policy)[row : row + 1], x)


def test_choosing_raises_what_is_chosen_by_and_one_candidate_chooses_nothing(linear_policy):
    policy = linear_policy((2,))
    one, six = (sampled(policy, num_candidates=count) for count in (1, 6))
    assert (six[:, 0] > one[:, 0]).all()
    assert_close(sampled(policy, lambda x, sigma, prompts: -x[:, 0], num_candidates=1), one)


@torch.no_grad()
def test_without_noise_candidates_are_the_flow(linear_policy):
    policy = linear_policy((2,))
    flow = []
    for root in ROOTS:
        x = Address(5, "initial", 0, root.prompt_slot, root.seed_group).normal((1, 2))
        for sigma, sigma_next in pairwise(SIGMAS):
            condition = policy.encode(PROMPTS).index(torch.tensor([root.condition]))
            x = x + (sigma_next - sigma) * policy.velocity(x, sigma[None], condition)
        flow.append(x)
    assert_close(sampled(policy, kernel=CPS(noise_level=0.0)), torch.cat(flow))
