"""The battery of checks for methods without trajectory likelihoods, and where each one is.

1  All objectives take the same first step: objectives/test_first_step.py,
   test_the_first_step_goes_along_the_advantage_times_the_slope_of_the_error
2  NFT's quadratic identity: objectives/test_implicit.py,
   test_with_uniform_weights_it_is_regression_with_a_trust_region
3  The ELBO is exact on Gaussians: objectives/test_surrogate.py,
   test_the_elbo_of_exact_flows_differs_by_the_log_ratio_of_their_densities
4  Gaussian tilt, -σ k/D: of the covariance, objectives/test_gaussian_tilt.py,
   test_nft_wants_a_covariance_over_beta_beyond_the_old_policy; of RAM, objectives/test_gaussian_tilt.py,
   test_ram_wants_the_flow_of_the_tilted_density; of the lean adjoint, objectives/test_adjoint_matching.py,
   test_adjoint_matching_is_at_rest_on_the_flow_of_the_tilted_density; of slopes at one step and at the end,
   properties/test_battery.py, test_slopes_of_the_reward_are_the_tilts_but_for_a_factor_of_the_noise_level
5  Ratios are 1 at the first step: properties/test_every_recipe.py,
   test_stored_steps_have_ratio_one_before_the_first_update, and objectives/test_rules.py,
   test_without_old_weights_the_ratio_is_exactly_one
6  Groups are whole on any number of processes: training/test_units.py,
   test_groups_that_stand_on_several_processes_are_whole
7  A constant reward moves nothing on average: objectives/test_gaussian_tilt.py,
   test_the_same_advantage_for_all_moves_a_calibrated_policy_nowhere_on_average; nor does one without a slope,
   properties/test_battery.py, test_a_reward_without_a_slope_leaves_the_reference_where_it_is
8  Only the policy's velocity has a gradient: properties/test_battery.py,
   test_rows_and_named_weights_come_without_a_gradient, and objectives/test_rules.py,
   test_what_the_policy_is_compared_with_has_no_slope
9  Forward values of Direct-Align and LeapAlign: objectives/test_reward_gradient.py,
   test_direct_align_recovers_the_sample_where_the_velocity_is_its_own;
   objectives/test_reward_gradient.py, test_leaps_have_the_values_of_the_real_states_and_the_papers_gradient
10 Kernels without memory: objectives/test_adjoint_matching.py,
   test_only_memoryless_kernels_forget_the_initial_noise
11 DPO is log 2 at the reference: objectives/test_rules.py, test_dpo_is_log_two_at_the_reference
12 A balance in proportion is left alone: objectives/test_balance.py,
   test_paths_drawn_in_proportion_are_left_as_they_are
"""

import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from objectives.nonlinear_field import paths, slope_of
from objectives.test_adjoint_matching import Gaussian, K, normal, spread
from properties.test_every_recipe import collected
from properties.test_pathwise_recipes import gradient as pathwise_gradient
from thalweg.core.processes import Processes
from thalweg.models import MiniatureModel
from thalweg.objectives import AdjointMatchingODE, ScoreMatching
from thalweg.objectives.contract import PathwiseContract
from thalweg.training.backward import backward
from thalweg.training.pathwise import FieldAtRows
from thalweg.training.recipe.load import load_recipe, recipe_names
from training.small_runs import small

OBJECTIVES = {name: load_recipe(name).objective for name in recipe_names()}
PATHWISE = [name for name, of in OBJECTIVES.items() if isinstance(of, PathwiseContract)]
OTHERS = [
    name
    for name in OBJECTIVES
    if name not in PATHWISE and isinstance(load_recipe(name).model, MiniatureModel)
]


def test_every_check_of_the_list_is_where_it_says():
    places = re.findall(r"(\w+/test_\w+\.py),\s+(test_\w+)", __doc__)
    assert len(places) == 19
    for file, name in places:
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text, (file, name)


def least(objective, rows, field):
    """Where a quadratic loss in θ has its minimum, from its slopes at 0 and 1."""
    slopes = []
    for theta in (0.0, 1.0):
        with torch.no_grad():
            field.theta.fill_(theta)
        slopes.append(slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field))
    return slopes[0] / (slopes[0] - slopes[1])


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("slope", ["final", "one_step"])
def test_slopes_of_the_reward_are_the_tilts_but_for_a_factor_of_the_noise_level(slope, level):
    # The exact shift of the velocity is -σ k/D. Both slopes are k, so b (1-σ)^p k wants D (1-σ)^p b / σ times
    # that; with b = σ/D at one level it is exact.
    field = Gaussian(0.0, reference=0.0, policy=0.0)
    sigmas = torch.tensor([[level, 0.0]] * 2, dtype=torch.float64)
    rows = paths(normal(2, 2, 3), sigmas)
    rows = type(rows)(**(vars(rows) | {"chosen": torch.zeros(2, 1, dtype=torch.int64)}))
    for power, share in ((0.0, 1.0), (1.0, 1 - level)):
        strength = level / spread(level)
        objective = ScoreMatching(slope=slope, strength=strength, data_power=power, num_steps=1)
        assert least(objective, rows, field) == pytest.approx(-share * level * K / spread(level))
    # The slope of the unrolled step knows how x̂0 answers to x; that of the value does too.
    _, pulled = field.pull_back("policy", rows.states[:, 0], sigmas[:, 0], torch.full((2, 3), K).double())
    through = K - level * pulled
    assert_close(through, torch.full((2, 3), K * (1 - level) / spread(level), dtype=torch.float64))


@pytest.mark.parametrize(
    "objective",
    [
        ScoreMatching(strength=3.0, num_steps=1),
        ScoreMatching(strength=3.0, num_steps=1, slope="one_step"),
        AdjointMatchingODE(cost=0.1, num_steps=1),
    ],
    ids=lambda o: f"{o.kind} {getattr(o, 'slope', '')}",
)
def test_a_reward_without_a_slope_leaves_the_reference_where_it_is(objective):
    class Indifferent(Gaussian):
        def reward(self, latents, wording="{}"):
            return 0 * latents.flatten(1).sum(1) + 5

    field = Indifferent(0.0, reference=0.0, policy=0.0)
    rows = paths(normal(2, 2, 3), torch.tensor([[0.4, 0.0]] * 2, dtype=torch.float64))
    rows = type(rows)(**(vars(rows) | {"chosen": torch.zeros(2, 1, dtype=torch.int64)}))
    assert slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field) == 0


@pytest.mark.parametrize("name", OTHERS)
def test_rows_and_named_weights_come_without_a_gradient(name, tiny_policy, prompts, monkeypatch):
    recipe, policy = small(name), tiny_policy()
    seen = []
    kind = type(recipe.objective)
    measured, judged = kind.measure, kind.loss

    def measure(self, rows, x, velocity, anchors):
        seen.append(velocity.requires_grad)
        named = {f"anchor {key}": value for key, value in anchors.items()}
        there = {key: value for key, value in vars(rows).items() if value is not None}
        for key, value in (there | named | {"x": x}).items():
            assert not value.requires_grad, key
        return measured(self, rows, x, velocity, anchors)

    def loss(self, scalars, rows):
        terms, report = judged(self, scalars, rows)
        assert not any(value.requires_grad for value in report.values())
        return terms, report

    monkeypatch.setattr(kind, "measure", measure)
    monkeypatch.setattr(kind, "loss", loss)
    if name == "flow-opd":
        pathwise_gradient(name, policy, prompts)
    else:
        rows, forest = collected(recipe, policy, prompts)
        seen.clear()
        backward(recipe.objective, policy, rows, forest.condition, 1000, 1.0, Processes())
    assert seen and all(seen)
    for other in set(policy.weights.names) - {"policy"}:
        assert all(tensor.grad is None for tensor in policy.weights.tensors(other).values())
    assert all(p.grad is not None for p in policy.weights.parameters.values())


@pytest.mark.parametrize("name", PATHWISE)
def test_a_pathwise_objective_gets_slopes_through_the_policy_alone(name, tiny_policy, prompts, monkeypatch):
    of, pulled, of_policy, seen = (
        FieldAtRows.velocity_of,
        FieldAtRows.pull_back,
        FieldAtRows.velocity,
        [],
    )

    def velocity_of(self, *arguments):
        found = of(self, *arguments)
        assert not found.requires_grad
        return found

    def pull_back(self, *arguments):
        found = pulled(self, *arguments)
        assert not any(one.requires_grad for one in found)
        return found

    def velocity(self, *arguments, **options):
        found = of_policy(self, *arguments, **options)
        seen.append(found.requires_grad)
        return found

    monkeypatch.setattr(FieldAtRows, "velocity_of", velocity_of)
    monkeypatch.setattr(FieldAtRows, "pull_back", pull_back)
    monkeypatch.setattr(FieldAtRows, "velocity", velocity)
    policy = tiny_policy(load_recipe(name).model)
    pathwise_gradient(name, policy, prompts)
    assert seen and all(seen)
    for other in set(policy.weights.names) - {"policy"}:
        assert all(tensor.grad is None for tensor in policy.weights.tensors(other).values())
