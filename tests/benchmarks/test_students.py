"""What the comparison of students with teachers says of images that were looked at."""

import math

import pytest
import students
import torch
from students import Look, measures, table


def look(strict, distance):
    values = torch.tensor(strict)
    return Look(values, 2 * values, torch.tensor(distance), torch.tensor(distance))


@pytest.fixture(autouse=True)
def two_groups(monkeypatch):
    monkeypatch.setattr(students, "GROUPS", 2)


EVERY = torch.ones(4, dtype=torch.bool)


def test_a_student_is_compared_prompt_by_prompt_after_its_seeds_are_averaged():
    seeds = [look([1.0, 0.0, 1.0, 1.0], [0.3, 0.1]), look([1.0, 1.0, 1.0, 0.0], [0.1, 0.1])]
    line = measures(seeds, [look([1.0, 0.0, 0.0, 1.0], [0.2, 0.2])], EVERY)
    assert line["strict"] == 0.75 and line["strict/sd"] == 0
    # Less the teacher's: 0, 1/2, 1, -1/2 with the sample variance (1/16 + 1/16 + 9/16 + 9/16) / 3.
    assert line["strict/difference"] == 0.25
    assert line["strict/difference_se"] == pytest.approx(math.sqrt(20 / 16 / 3 / 4))
    assert line["log_odds/difference"] == 0.5
    # Distances of .2 and .1 against .2 and .2: shares 1 and 1/2, off by 0 and -1/2.
    assert line["distance_kept"] == pytest.approx(0.75)
    assert line["distance_kept/se"] == pytest.approx(0.25)


def test_groups_without_two_right_images_are_left_out_of_both():
    student = [look([1.0, 1.0, 1.0, 1.0], [0.3, math.nan])]
    line = measures(student, [look([1.0, 1.0, 1.0, 1.0], [0.4, 0.1])], EVERY)
    assert line["distance_of_right_groups"] == 1
    assert line["distance_of_right_kept"] == pytest.approx(0.75)


def test_a_teacher_is_met_on_its_own_prompts_alone():
    mine = torch.tensor([True, False, True, False])
    student = [look([1.0, 0.0, 1.0, 0.0], [0.1, 0.7])]
    line = measures(student, [look([0.0, 0.0, 1.0, 1.0], [0.2, 0.7])], mine)
    assert line["strict"] == 1 and line["strict/difference"] == 0.5
    assert line["distance_groups"] == 1 and line["distance_kept"] == pytest.approx(0.5)


def test_a_row_of_the_table_is_a_model():
    line = {"recipe": "dmd", "model": "student"} | measures(
        [look([1.0, 0.0, 1.0, 1.0], [0.2, 0.2])] * 2, [look([1.0, 0.0, 1.0, 0.0], [0.2, 0.2])], EVERY
    )
    assert (
        table([line])
        .splitlines()[2]
        .startswith("| dmd | student | 0.750 ± 0.000 | +0.250 ± 0.250 | 1.50 ± 0.00 |")
    )
    alone = [look([1.0, 0.0, 1.0, 0.0], [0.2, 0.2])]
    line = {"recipe": "dmd", "model": "teacher"} | measures(alone, alone, EVERY)
    # One seed has no deviation.
    assert table([line]).splitlines()[2].startswith("| dmd | teacher | 0.500 | +0.000 ± 0.000 | 1.00 |")
