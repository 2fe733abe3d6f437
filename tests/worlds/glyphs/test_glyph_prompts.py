import hashlib
from itertools import combinations

import numpy as np
import pytest

from thalweg.worlds.glyphs.font import ALPHABET, glyph, tokenize
from thalweg.worlds.glyphs.prompts import held_out_prompts, pretraining_prompts, training_prompts


def test_any_two_letters_differ_in_four_pixels():
    assert all(np.abs(glyph(a) - glyph(b)).sum() >= 4 for a, b in combinations(ALPHABET, 2))


def test_six_hundred_strings_are_held_out_of_both_trainings():
    held_out = {p.text for p in held_out_prompts()}
    assert len(held_out) == len(held_out_prompts()) >= 600
    assert held_out.isdisjoint(p.text for p in training_prompts())
    assert held_out.isdisjoint(p.text for p in pretraining_prompts())


def test_every_string_is_held_out_or_pretrained_on():
    everything = {p.text for p in (*held_out_prompts(), *pretraining_prompts())}
    assert len(everything) == 12**2 + 12**3 + 12**4


def test_the_split_is_the_same_everywhere():
    texts = "\n".join(p.text for p in held_out_prompts())
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "efb94d35297d40bf"


def test_a_task_is_the_number_of_letters():
    lengths = {"two": 2, "three": 3, "four": 4}
    assert all(lengths[p.metadata["task"]] == len(p.text) for p in (*held_out_prompts(), *training_prompts()))


def test_a_string_becomes_one_token_a_letter():
    assert tokenize(["ACE", '"lo"', ""]).tolist() == [[1, 2, 3, 0], [5, 6, 0, 0], [0, 0, 0, 0]]


def test_an_unknown_letter_is_named():
    with pytest.raises(ValueError, match="prompt 'C A B': no such word 'B'; known: A, C, E"):
        tokenize(["CAB"])


def test_a_string_that_is_too_long_says_what_fits():
    with pytest.raises(ValueError, match="5 words; this world reads at most 4"):
        tokenize(["SPACE"])
