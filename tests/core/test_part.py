import pytest
from pydantic import ValidationError

from thalweg.core.names import nearest
from thalweg.credit import GroupCredit


def test_a_part_refuses_unknown_keys_and_numbers_that_are_not_finite():
    with pytest.raises(ValidationError, match="epsilonn"):
        GroupCredit(epsilonn=1e-4)
    with pytest.raises(ValidationError, match="finite"):
        GroupCredit(epsilon=float("nan"))


def test_a_part_cannot_be_changed_after_it_is_made():
    with pytest.raises(ValidationError, match="frozen"):
        GroupCredit().epsilon = 1.0


def test_the_line_under_a_field_is_its_description():
    assert GroupCredit.model_fields["limit"].description == "Largest size of an advantage."


def test_a_misspelt_name_is_answered_by_the_nearest_one_and_a_strange_one_by_all():
    assert nearest("scens", ["scenes", "glyphs"]) == "; did you mean 'scenes'?"
    assert nearest("xyz", ["scenes", "glyphs"]) == "; known: scenes, glyphs"


def test_of_many_known_names_the_first_are_told_and_how_many_there_are():
    many = [f"n{i:02}" for i in range(20)]
    assert nearest("xyz", many) == f"; known: {', '.join(many[:16])} and 4 more"
