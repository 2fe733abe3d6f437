import json
from dataclasses import replace

import pages
import pytest
from pages import Table, filled, numbers_of

TITLES = [
    "recipe",
    "seeds",
    "learning rate",
    "base",
    "final",
    "best",
    "diversity kept",
    "passes",
    "with gradient",
]
TITLES += ["CPU s", "CPU s to 0.700", "passes to 0.700", "published claim"]


def row(recipe, *spent):
    cells = [
        recipe,
        "0, 1",
        "0.0001",
        "0.600",
        "0.700",
        "0.710",
        "1.00",
        "900",
        "300",
        "240",
        *spent,
        "twice as fast",
    ]
    return dict(zip(TITLES, cells, strict=True))


TABLES = {
    "main-scenes": Table(240.0, TITLES, {"mix-grpo": row("mix-grpo", "120 (2.0x)", "400 (1.5x)")}),
    "trajectory": Table(240.0, TITLES, {"gcpo": row("gcpo", "not reached", "not reached")}),
}


def test_pages_say_what_the_stored_results_say():
    for path, page in pages.pages().items():
        assert path.read_text("utf-8") == page, f"{path.name}: run benchmarks/pages.py"


def test_a_paragraph_tells_runs_and_costs_and_the_claim():
    said = numbers_of("mix-grpo", TABLES)
    assert (
        "Scenes, 240 s of processor time at learning rate 0.0001, seeds 0, 1: strict 0.600 -> 0.700" in said
    )
    assert "To the 0.700 that `flow-grpo` ends with: seconds 120 (2.0x), passes 400 (1.5x)." in said
    assert "Published: twice as fast." in said
    assert "0.700 that `flow-grpo` ends with is not reached" in numbers_of("gcpo", TABLES)
    assert numbers_of("otca", TABLES).startswith("Not measured yet")
    student = {"forward": Table(240.0, TITLES, {"dmd": row("dmd", "another task", "another task")})}
    said = numbers_of("dmd", student)
    assert "300 with gradient. Published: twice as fast. [Results](../results/forward.md)." in said


def test_a_page_keeps_everything_around_its_numbers():
    page = "# A\n\n<!-- table main-scenes: recipe, CPU s, CPU s to -->\nold\n<!-- end -->\n\nafter\n"
    expected = "| recipe | CPU s | CPU s to 0.700 |\n| --- | --- | --- |\n| mix-grpo | 240 | 120 (2.0x) |\n"
    assert filled(page, "index", TABLES) == page.replace("old\n", expected)
    assert filled("text alone", "index", TABLES) == "text alone"
    with pytest.raises(StopIteration):
        filled(page.replace("CPU s to", "colour"), "index", TABLES)


def test_the_rates_that_were_tried_stand_beside_the_one_that_was_taken():
    def of(rate, final):
        cells = ["gcpo", rate, final, "15", "900", "300"]
        titles = ["recipe", "learning rate", "final", "iterations", "passes", "with gradient"]
        return Table(60.0, titles, {"gcpo": dict(zip(titles, cells, strict=True))})

    tried = {"x0.5": of("5e-05", "0.610"), "x1": of("0.0001", "0.620"), "x2": of("0.0002", "0.630")}
    tables = {"trajectory": replace(of("0.0002", "0.700"), trials=tried)}
    said = filled("<!-- trials trajectory -->\n<!-- end -->\n", "index", tables)
    assert "| gcpo | 0.610 | 0.620 | 0.630 | 0.0001 | 0.0002 | 15 | 900 | 300 |\n<!-- end -->" in said


def test_a_single_run_stands_beside_the_keys_that_it_changed_and_a_stored_table_as_it_is(tmp_path):
    scores = {
        "base": 0.6,
        "final": 0.25,
        "best": 0.6,
        "learning_rate": 1e-4,
        "budget": 60.0,
        "iterations": 20,
    }
    changes = ["evaluation.every=25", "rollout.steps=4", "model.world=glyphs"]
    run = {"recipe": "awm", "changes": changes, **scores}
    (tmp_path / "tried").mkdir()
    (tmp_path / "tried" / "looks.json").write_text(json.dumps([run, run | {"changes": []}]))
    said = filled("<!-- looks tried -->\nold\n<!-- end -->\n", "forward", {}, tmp_path)
    assert (
        "| awm | `rollout.steps=4`, `model.world=glyphs` | 0.0001 | 60 | 20 | 0.600 | 0.250 | 0.600 |" in said
    )
    assert "| awm | nothing | 0.0001 |" in said and "old" not in said
    (tmp_path / "tried" / "table.md").write_text("| a |\n")
    page = "<!-- stored tried/table.md -->\nold\n<!-- end -->\n"
    assert filled(page, "forward", {}, tmp_path) == page.replace("old", "| a |")
