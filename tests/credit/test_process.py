import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from thalweg.core.forest import Scores
from thalweg.core.processes import Processes
from thalweg.core.values import Prompt
from thalweg.credit import ProcessCredit
from thalweg.flow import FlowSDE
from thalweg.rollout import AllSteps, Candidates, Rollout, Root, grow

RAW = {"std": "none", "limit": None}


def forest_of(policy, plan, **settings):
    rollout = Rollout(plan=plan, steps=3, kernel=FlowSDE(), **settings)
    count = rollout.num_roots
    roots = [Root(s, g, s * count + g, s) for s in (0, 1) for g in range(count)]
    return grow(policy, (Prompt("a"), Prompt("b")), roots, rollout, seed=0, iteration=0)


def assign(credit, forest, leaves, *steps):
    """`steps` are the scores of the nodes of levels 1, 2, ...; the others have none."""
    of_level = [torch.full((len(level.parent),), torch.nan) for level in forest.levels]
    for at, values in enumerate(steps, start=1):
        of_level[at] = torch.tensor(values)
    scores = Scores({"r": torch.tensor(leaves)}, {"p": tuple(of_level)})
    return credit.assign(forest, scores, {"r": 1.0, "p": 2.0}, Processes())


def test_outcome_and_process_are_two_terms_each_with_its_weight(linear_policy):
    forest = forest_of(linear_policy(), AllSteps(), group_size=2)
    found = assign(
        ProcessCredit(outcome_weight=3.0, process_weight=0.5, **RAW),
        forest,
        [1.0, 3.0, 0.0, 10.0],
        [0.0, 4.0, 2.0, 2.0],
        [1.0, 0.0, 5.0, 9.0],
    )
    # Outcomes -1, 1 | -5, 5 times 3; states -4, 4 | 0, 0 and 1, -1 | -4, 4 (the reward weighs 2) times .5.
    assert_close(found.levels[1], torch.tensor([[-3.0, -2.0], [3.0, 2.0], [-15.0, 0.0], [15.0, 0.0]]))
    assert_close(found.levels[2], torch.tensor([[-3.0, 0.5], [3.0, -0.5], [-15.0, -2.0], [15.0, 2.0]]))
    assert found.leaves.flatten().tolist() == [-1, 1, -5, 5]


def test_candidates_are_compared_with_those_of_their_own_state_alone(linear_policy):
    forest = forest_of(linear_policy(), Candidates(num_candidates=2), group_size=2)
    credit = ProcessCredit(outcome_weight=0, compare="siblings", **RAW)
    first, second = [0.0, 1.0, 100.0, 104.0, 7.0, 7.0, 3.0, 1.0], [5.0, 0.0] * 4
    found = assign(credit, forest, [0.0] * 4, first, second)
    assert found.levels[1].flatten().tolist() == [-1, 1, -4, 4, 0, 0, 2, -2]
    assert found.levels[2].flatten().tolist() == [5, -5] * 4


def test_one_candidate_teaches_nothing(linear_policy):
    forest = forest_of(linear_policy(), Candidates(num_candidates=1), group_size=2)
    found = assign(
        ProcessCredit(outcome_weight=0, compare="siblings"),
        forest,
        [0.0] * 4,
        [1.0, 2.0, 3.0, 4.0],
        [1.0] * 4,
    )
    assert found.levels[1].abs().max() == 0 and found.levels[2].abs().max() == 0


def test_steps_into_states_too_noisy_for_the_judge_have_no_process_credit(linear_policy):
    forest = forest_of(linear_policy(), AllSteps(), group_size=2)
    sigmas = [float(level.sigma[0]) for level in forest.levels]
    scores = [[0.0, 4.0, 2.0, 2.0], [1.0, 0.0, 5.0, 9.0]]
    credit = ProcessCredit(sigma_max=sigmas[2], **RAW)  # the level itself is still judged
    found = assign(credit, forest, [1.0, 3.0, 0.0, 10.0], *scores)
    assert found.levels[1].tolist() == [[-1, 0], [1, 0], [-5, 0], [5, 0]]
    assert found.levels[2].tolist() == [[-1, 1], [1, -1], [-5, -4], [5, 4]]


def test_a_process_credit_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="are both 0; give one of them a weight"):
        ProcessCredit(outcome_weight=0, process_weight=0)
