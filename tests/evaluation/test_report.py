import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from evaluation.synthetic_run import BASE, RUN, TRAINED, eval_line, train_line, write_sheets
from thalweg.core.errors import UserError
from thalweg.evaluation import (
    accuracy_metrics,
    diversity_metrics,
    monitor_metrics,
    read_run,
    write_comparison,
    write_report,
)
from thalweg.evaluation.charts import number, ticks
from thalweg.evaluation.report import HEALTH, MONITORS


class Page(HTMLParser):
    """Text and tags of a page; every tag that opens must close in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def report(folder) -> Page:
    return Page(write_report(folder).read_text("utf-8"))


def test_the_report_stands_in_the_folder_and_loads_nothing(write_run):
    folder = write_run()
    write_sheets(folder, {0: (255, 0, 0), 20: (0, 0, 255)}, prompts=["a cat"])
    path = write_report(folder)
    html = path.read_text("utf-8")
    assert path == folder / "report.html"
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", html)
    sources = [attrs["src"] for tag, attrs in Page(html).seen if "src" in attrs]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert sorted(p.name for p in folder.iterdir()) == [
        "metrics.jsonl",
        "recipe.yaml",
        "report.html",
        "run.json",
        "samples",
    ]


def test_the_headline_tells_what_the_run_reached_and_cost(write_run):
    text = report(write_run()).text
    assert "58.3 → 86.1%" in text
    # Newcombe: 27.8 - √(3.1² + 3.3²) = 23.3, 27.8 + √(1.9² + 3.3²) = 31.6.
    assert "+27.8 points (95% interval +23.3 to +31.6)" in text
    assert "0.61 → 0.87" in text
    assert "5.3 min" in text  # 320 s
    assert "50k 20k with a backward" in text
    assert "Example 9000 2 cores" in text
    assert "iteration 20 of 20" in text


def test_every_part_of_the_report_is_there(write_run):
    page = report(write_run())
    for heading in (
        "Warnings",
        "Accuracy",
        "Before and after",
        "Reward",
        "Diversity and monitors",
        "Training",
        "Cost",
    ):
        assert heading in page.words
    assert "no metric crossed a threshold" in page.text
    assert "Two object" in page.text and "clip_range: 1.0e-4" in page.text and "2.13.0" in page.text


def test_stage_times_add_up_to_the_run(write_run):
    # 20 iterations of 6 s and 9 s in 320 s leave 20 s for everything else.
    text = report(write_run()).text
    assert "rollout 2.0 min 37.5%" in text
    assert "update 3.0 min 56.2%" in text
    assert "everything else 20.0 s 6.2%" in text


def test_points_carry_their_values_as_tooltips(write_run):
    text = report(write_run()).text
    assert "accuracy, iteration 20: 86.1% (83% – 88%)" in text
    assert "two_object, iteration 0: 50%" in text


def test_before_and_after_are_the_first_and_the_last_sheet_row_by_row(write_run):
    folder = write_run()
    write_sheets(folder, {0: (255, 0, 0), 9: (0, 255, 0), 20: (0, 0, 255)}, prompts=["a cat", "a <dog>"])
    page = report(folder)
    images = [attrs for tag, attrs in page.seen if tag == "img"]
    assert [image["alt"] for image in images] == [
        "a cat, before",
        "a cat, iter. 20",
        "a <dog>, before",
        "a <dog>, iter. 20",
    ]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert [(p.size, p.getpixel((0, 0))) for p in pictures] == 2 * [
        ((8, 4), (255, 0, 0)),
        ((8, 4), (0, 0, 255)),
    ]
    assert all(image["class"] == "pixels" for image in images)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda samples: (samples / "index.json").unlink(), "no sample images yet"),
        (lambda samples: (samples / "index.json").write_text("{"), "cannot be read"),
        (lambda samples: (samples / "00000020.png").write_bytes(b"\x89PNG"), "cannot be read"),
        (lambda samples: (samples / "00000020.png").unlink(), "cannot be read"),
        (
            lambda samples: Image.new("RGB", (9, 9)).save(samples / "00000020.png"),
            "9x9, by index.json it should be 8x4",
        ),
    ],
)
def test_missing_or_broken_sheets_are_told_plainly(write_run, break_it, words):
    folder = write_run()
    write_sheets(folder, {0: (255, 0, 0), 20: (0, 0, 255)}, prompts=["a cat"])
    break_it(folder / "samples")
    assert words in report(folder).text


@pytest.mark.parametrize("tail", ['{"event": "eval", "iteration": 30, "accu', '{"event"', "\ufffd"])
def test_a_half_written_last_line_is_ignored(write_run, tail):
    whole, cut = write_run("whole"), write_run("cut", tail=tail)
    assert (read_run(cut).evals, read_run(cut).trains) == (read_run(whole).evals, read_run(whole).trains)
    assert "cannot be read" not in report(cut).text.split("Warnings")[1].split("Accuracy")[0]


def test_a_broken_line_in_the_middle_is_counted(write_run):
    folder = write_run()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{{{", *lines[1:]]) + "\n")
    assert read_run(folder).unreadable == 1
    assert "has 1 line that cannot be read" in report(folder).text


def test_a_run_that_has_just_begun_has_a_report(write_run):
    text = report(write_run(lines=[])).text
    assert "Not evaluated yet" in text and "no metrics yet" in text


def test_a_run_with_its_base_alone_says_so(write_run):
    text = report(write_run(lines=[eval_line(0, BASE), train_line(1)])).text
    assert "at iteration 0; not evaluated since" in text


def test_values_that_are_no_numbers_do_not_reach_the_curves(write_run):
    lines = [eval_line(0, BASE), train_line(1, reward=float("nan"), loss=float("inf")), eval_line(2, TRAINED)]
    html = write_report(write_run(lines=lines)).read_text("utf-8")
    assert not re.search(r"\b(nan|inf)\b", html.split("</style>")[1])


def test_a_folder_with_metrics_alone_has_a_report(write_run):
    folder = write_run()
    (folder / "run.json").unlink()
    (folder / "recipe.yaml").unlink()
    text = report(folder).text
    assert "no readable run.json" in text and "no recipe.yaml" in text and "86.1%" in text


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run's folder"):
        write_report(tmp_path)


def test_what_a_run_says_cannot_become_markup(write_run):
    evil = "<script>alert(1)</script>"
    folder = write_run(run=RUN | {"name": evil, "hardware": {evil: evil}, "command": evil})
    (folder / "recipe.yaml").write_text(evil)
    write_sheets(folder, {0: (255, 0, 0)}, prompts=[evil + '"'])
    assert not any(tag == "script" for tag, _ in report(folder).seen)


def test_a_comparison_overlays_runs_and_tabulates_their_ends(write_run, tmp_path):
    worse = [
        eval_line(0, BASE),
        eval_line(10, TRAINED | {"accuracy": 0.7, "accuracy_low": 0.66, "accuracy_high": 0.74}),
    ]
    folders = [write_run("a"), write_run("b", lines=worse, run=RUN | {"name": "diffusion-nft"})]
    page = Page(write_comparison(folders, tmp_path / "out" / "compare.html").read_text("utf-8"))
    assert "mix-grpo 20 58.3% 86.1% 83.0% – 88.0% 86.1% 0.87 0.41 0.11 5.3 min 50k 20k" in page.text
    assert "diffusion-nft 10 58.3% 70.0% 66.0% – 74.0% 70.0%" in page.text
    for axis in ("seconds", "network passes", "iteration"):
        assert f"Against {axis}" in page.text
    assert "diffusion-nft, seconds 160: 70%" in page.text
    assert "diffusion-nft, network passes 25k: 70%" in page.text


def test_runs_of_one_name_are_told_apart_by_their_folders(write_run, tmp_path):
    folders = [write_run("seed0"), write_run("seed1")]
    text = Page(write_comparison(folders, tmp_path / "compare.html").read_text("utf-8")).text
    assert "mix-grpo · seed0" in text and "mix-grpo · seed1" in text


def test_a_comparison_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one run"):
        write_comparison([], tmp_path / "compare.html")


def test_a_run_of_many_iterations_keeps_its_report_small(write_run):
    lines = [
        eval_line(0, BASE),
        *(train_line(i, loss=0.1, kl=0.01) for i in range(1, 1501)),
        eval_line(1500, TRAINED),
    ]
    assert write_report(write_run(lines=lines)).stat().st_size < 400_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.8612, "0.861"),
        (57600, "57.6k"),
        (1234, "1234"),
        (2.5e6, "2.5M"),
        (3e-7, "3e−7"),
        (-0.25, "−0.25"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (3.1, 4.9, [3, 3.5, 4, 4.5, 5]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_and_enclose_the_data(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_every_metric_shown_or_made_here_is_documented(pytestconfig):
    group, images = torch.zeros(2, dtype=torch.int64), torch.rand(2, 3, 8, 8)
    made = {
        **accuracy_metrics({"<task>": (1, 2)}),
        **diversity_metrics(torch.eye(2), group, ["a", "b"]),
        **monitor_metrics(images, images, group),
    }
    page = (pytestconfig.rootpath / "docs" / "metrics.md").read_text("utf-8")
    names = [*made, *(shown.metric for shown in (*MONITORS, *HEALTH))]
    assert [name for name in names if f"`{name}`" not in page] == []
