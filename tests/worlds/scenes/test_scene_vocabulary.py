import pytest
import torch

from thalweg.worlds.scenes.prompts import held_out_prompts, pretraining_prompts, training_prompts
from thalweg.worlds.scenes.vocabulary import VOCABULARY, tokenize


def test_a_prompt_becomes_one_token_a_word_padded_with_zero():
    tokens = tokenize(["a red square"])[0]
    assert [VOCABULARY.words[t - 1] for t in tokens[:3].tolist()] == ["a", "red", "square"]
    assert tokens[3:].tolist() == [0] * 6


def test_case_and_punctuation_do_not_matter():
    assert torch.equal(tokenize(["A red square, and a circle."]), tokenize(["a red square and a circle"]))


def test_the_empty_text_is_padding_alone():
    assert tokenize([""]).tolist() == [[0] * 9]


def test_every_word_has_a_token_of_its_own():
    assert len(set(VOCABULARY.words)) == len(VOCABULARY.words) <= 40


def test_every_prompt_of_the_world_can_be_read():
    texts = [p.text for p in (*held_out_prompts(), *training_prompts(), *pretraining_prompts())]
    assert (tokenize(texts) > 0).any(1).all()


def test_an_unknown_word_is_named_with_the_nearest_known_one():
    with pytest.raises(ValueError) as caught:
        tokenize(["a red sqare"])
    assert str(caught.value) == "prompt 'a red sqare': no such word 'sqare'; did you mean 'square'?"


def test_a_prompt_that_is_too_long_says_what_fits():
    with pytest.raises(ValueError, match="10 words; this world reads at most 9"):
        tokenize(["a " * 10])
