from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from thalweg.core.values import Prompt
from thalweg.training.data import Data, draw_prompts, load_prompts


@given(count=st.integers(1, 12), per_iteration=st.integers(1, 8), seed=st.integers(0, 9))
def test_every_prompt_comes_once_before_any_comes_again(count, per_iteration, seed):
    prompts = tuple(Prompt(str(n)) for n in range(count))
    data = Data(prompts_per_iteration=per_iteration)
    drawn = [p.text for i in range(20) for p in draw_prompts(prompts, data, seed, i)]
    assert len(drawn) == 20 * per_iteration
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count]) == sorted(p.text for p in prompts)


def test_an_iteration_draws_the_same_prompts_whatever_was_drawn_before():
    prompts = tuple(Prompt(str(n)) for n in range(50))
    data = Data(prompts_per_iteration=8)
    in_order = [draw_prompts(prompts, data, 0, i) for i in range(9)]
    assert draw_prompts(prompts, data, 0, 7) == in_order[7]
    assert in_order[0] != draw_prompts(prompts, data, 1, 0)


def test_passes_through_the_prompts_differ_in_order():
    prompts = tuple(Prompt(str(n)) for n in range(10))
    first, second = (draw_prompts(prompts, Data(prompts_per_iteration=10), 0, i) for i in range(2))
    assert first != second
    assert Counter(p.text for p in first) == Counter(p.text for p in second)


def test_files_give_prompts_with_their_metadata(tmp_path):
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("a red square\n\n  a blue circle \n", encoding="utf-8")
    lines.write_text(
        '{"text": "a red square", "task": "colors", "n": 2}\n{"text": "a cross"}\n', encoding="utf-8"
    )
    assert load_prompts(str(text), "scenes") == (Prompt("a red square"), Prompt("a blue circle"))
    assert load_prompts(str(lines), "scenes") == (
        Prompt("a red square", {"task": "colors", "n": 2}),
        Prompt("a cross"),
    )
    # Without a world any word will do.
    text.write_text("ein rotes Quadrat\n", encoding="utf-8")
    assert load_prompts(str(text), None) == (Prompt("ein rotes Quadrat"),)
