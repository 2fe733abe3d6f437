from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from thalweg.core.values import Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.training.data.prompts import Data, draw_prompts, held_out_prompts, load_prompts


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


def test_sizes_are_drawn_by_address_and_a_prompt_keeps_its_own():
    sizes = ({"height": 8, "width": 8}, {"height": 8, "width": 16})
    data = Data(sizes=sizes, prompts_per_iteration=64)  # type: ignore[arg-type]
    prompts = [Prompt(str(number)) for number in range(63)] + [Prompt("own", {"num_frames": 5})]
    drawn = draw_prompts(prompts, data, 0, 3)
    assert [p.metadata for p in draw_prompts(prompts, data, 0, 3)] == [p.metadata for p in drawn]
    wide = sum(p.metadata.get("width") == 16 for p in drawn)
    assert 16 < wide < 48  # 63 fair draws; 4 standard deviations are 16
    assert [p.metadata for p in drawn if p.text == "own"] == [{"num_frames": 5}]
    again = {p.text: p.metadata for p in draw_prompts(prompts, data, 0, 4)}
    assert any(again[p.text] != p.metadata for p in drawn)
    held_out = Evaluation(prompts="data")
    kept, once_more = (held_out_prompts(data, held_out, None, tuple(prompts)) for _ in range(2))
    assert [p.metadata for p in kept] == [p.metadata for p in once_more]
    assert {p.metadata.get("width") for p in kept} == {8, 16, None}
