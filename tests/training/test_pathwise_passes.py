"""Network passes of pathwise and distilling recipes, counted by hand: P=2 prompts, G=4 samples, B = P·G."""

import pytest

from thalweg.training.loop import train
from thalweg.training.policy import load_policy
from thalweg.training.preflight.plan import batch_plan
from training.small_runs import small, trains

B = 8
CASES = [
    # The reference once for each way, unless its weight is 0.
    ("refl", {}, 8 * B + (1 + 1) * B, B),
    ("refl", {"objective.reference_weight": 0}, 8 * B + B, B),
    ("draft", {}, 8 * B + (4 + 1) * B, 2 * B),  # two steps, recomputed
    ("draft", {"objective.route.recompute": False}, 8 * B + (2 + 1) * B, 2 * B),
    ("draft-lv", {}, 8 * B + (4 + 2) * B, 2 * B),  # two copies, recomputed
    ("leap-align", {}, 8 * B + (2 + 1) * B, 2 * B),
    ("srpo", {}, 8 * B + (2 + 2) * B, 2 * B),  # two directions
    ("srpo", {"model.guidance_scale": 2.0}, 2 * (8 * B + (2 + 2) * B), 2 * 2 * B),
    # 7 products with a Jacobian, the reference and the policy at 4 steps.
    ("adjoint-matching", {}, 8 * B + (7 + 4 + 4) * B, (7 + 4) * B),
    ("adjoint-matching-ode", {}, 8 * B + (2 + 3 + 3) * B, (2 + 3) * B),
    # 4 steps; the guided teacher and the fake; 5 steps of the fake.
    ("dmd", {}, 4 * B + (4 + 2 + 1 + 5) * B, (4 + 5) * B),
    ("dmd", {"objective.recompute": True}, 4 * B + (8 + 2 + 1 + 5) * B, (4 + 5) * B),
    # And the guided teacher's 5 steps.
    ("dp-dmd", {}, 4 * B + (4 + 2 * 6 + 1 + 5) * B, (4 + 5) * B),
    # And 4 directions a sample in place of one.
    ("gdmd", {}, 4 * B + (4 + 4 * (2 + 1) + 5) * B, (4 + 5) * B),
    ("rsm-first-order", {}, 8 * B + (4 + 4) * B, 4 * B),  # the reference and the policy at 4 steps
    ("rsm-first-order", {"objective.slope": "one_step"}, 8 * B + (4 + 4 + 4) * B, 4 * B),  # and x̂0 of each
    ("rats", {}, 4 * B + (4 + 16) * B, 4 * B),  # 4 steps; the teacher's 16
    ("rats", {"objective.recompute": True}, 4 * B + (8 + 16) * B, 4 * B),
    ("flow-opd", {}, 8 * B + 7 * (1 + 2 + 2) * B, 7 * B),  # two guided teachers
]


@pytest.mark.parametrize(("name", "overrides", "evaluations", "backwards"), CASES)
def test_an_iteration_takes_the_passes_of_the_closed_form(
    name, overrides, evaluations, backwards, tiny_world, tmp_path
):
    recipe = small(name, {"iterations": 1, **overrides})
    (line,) = trains(train(recipe, tmp_path / "run"))
    assert (line["evaluations"], line["backwards"]) == (evaluations, backwards)
    plan = batch_plan(recipe, load_policy(recipe))
    assert (plan.evaluations, plan.gradient_passes) == (evaluations, backwards)
