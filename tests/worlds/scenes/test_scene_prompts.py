import hashlib
from collections import Counter

import pytest

from thalweg.worlds.scenes.prompts import (
    TASKS,
    compositions,
    describe,
    held_out_prompts,
    one_wording,
    pretraining_prompts,
    training_prompts,
)


def meaning(prompt):
    """What a prompt asks for, whichever way round it is told."""
    spec = prompt.metadata["specification"]
    things = [(t["shape"], t["color"], t["size"], t["count"]) for t in spec["objects"]]
    match spec["relation"]:
        case None:
            arranged = frozenset(things)
        case "left" | "above":
            arranged = (spec["relation"], *things)
        case "right":
            arranged = ("left", *reversed(things))
        case "below":
            arranged = ("above", *reversed(things))
    return prompt.metadata["task"], arranged, spec["background"]


def test_six_hundred_compositions_are_held_out_and_each_is_told_once():
    held_out = held_out_prompts()
    assert len({meaning(p) for p in held_out}) == len(held_out) >= 600


def test_held_out_compositions_are_in_no_training_set_however_they_are_told():
    held_out = {meaning(p) for p in held_out_prompts()}
    assert held_out.isdisjoint(meaning(p) for p in training_prompts())
    assert held_out.isdisjoint(meaning(p) for p in pretraining_prompts())


def test_every_composition_is_held_out_or_pretrained_on():
    everything = {meaning(p) for p in (*held_out_prompts(), *pretraining_prompts())}
    # 4·3·6 single, 6·13·6 two, 4·7·3·6 counting, 4·6·3·6 colors, 12·13·2·6 position, 6·30 attribute
    assert len(everything) == 72 + 468 + 504 + 432 + 1872 + 180


def test_reinforcement_learning_sees_no_task_more_than_twice_as_often_as_another():
    counts = Counter(p.metadata["task"] for p in training_prompts())
    assert set(counts) == set(TASKS)
    assert max(counts.values()) <= 120 and min(counts.values()) >= 50


def test_pretraining_hears_both_wordings_of_two_objects():
    texts = {p.text for p in pretraining_prompts() if p.metadata["task"] == "attribute"}
    for text in texts:
        first, second = text.split(" and ")
        assert f"{second} and {first}" in texts


def test_the_split_is_the_same_everywhere():
    texts = "\n".join(p.text for p in held_out_prompts())
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "6fc73f0d7ff4b25a"


@pytest.mark.parametrize("task", TASKS)
def test_texts_name_what_their_specification_asks_for(task):
    for spec in compositions(task):
        words = one_wording(spec).text.split()
        asked = [value for item in spec["objects"] for value in (item["color"], item["size"]) if value]
        asked += [spec["background"]] if spec["background"] else []
        assert all(words.count(word) == asked.count(word) for word in asked)
        assert all(any(word.startswith(item["shape"]) for word in words) for item in spec["objects"])


def test_texts_read_as_english():
    square = {"shape": "square", "color": "red", "size": None, "count": 1}
    cross = {"shape": "cross", "color": None, "size": None, "count": 1}
    small = {"shape": "circle", "color": None, "size": "small", "count": 1}
    crosses = {**cross, "count": 3}
    assert describe({"objects": [square, cross], "relation": "left", "background": "mint"}) == (
        "a red square left of a cross on mint"
    )
    assert describe({"objects": [square, cross], "relation": "below", "background": None}) == (
        "a red square below a cross"
    )
    assert describe({"objects": [square, cross], "relation": None, "background": None}) == (
        "a red square and a cross"
    )
    assert describe({"objects": [crosses], "relation": None, "background": None}) == "three crosses"
    assert describe({"objects": [small], "relation": None, "background": None}) == "a small circle"
