"""One page for several runs: curves over seconds, network passes and iterations, and what each came to."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole
from thalweg.evaluation.charts import COLOURS, PERCENT, Axis, Curve, chart, number
from thalweg.evaluation.page import page, section
from thalweg.evaluation.record import Record, accuracy_of, read_run, series
from thalweg.evaluation.report import accuracy_curve, duration

ACROSS = (
    ("seconds", Axis("seconds")),
    ("evaluations", Axis("network passes")),
    ("iteration", Axis("iteration")),
)
METRICS = (
    ("reward", "Reward on held-out prompts", Axis("reward")),
    ("diversity", "Diversity (pairwise distance)", Axis("1 − cosine")),
    ("monitor/held_out_reward", "Held-out reward", Axis("reward")),
    ("monitor/drift", "Drift from the base", Axis("base variances")),
)


def write_comparison(run_folders: list[Path], out: Path) -> Path:
    """Writes the page to `out` and returns it."""
    if not run_folders:
        raise UserError("a comparison needs at least one run: give the folders of runs")
    runs = [read_run(folder) for folder in run_folders]
    names = _names(runs)
    blocks = [section("Final values", _table(runs, names))]
    accuracy = [
        chart(f"Against {axis.label}", _accuracies(runs, names, x), x=axis, y=PERCENT) for x, axis in ACROSS
    ]
    blocks.append(section("Accuracy", _key(names) + _cards(accuracy), lead="Strict, on held-out prompts."))
    for metric, title, y in METRICS:
        charts = [
            chart(f"Against {axis.label}", _curves(runs, names, metric, x), x=axis, y=y) for x, axis in ACROSS
        ]
        blocks.append(section(title, _cards(charts)))
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(out, page(f"{len(runs)} runs compared", ", ".join(dict.fromkeys(names)), blocks))


def _names(runs: Sequence[Record]) -> list[str]:
    """A name of its own for each run: the run's, with the folder's where two share it, else with a number."""
    shared = Counter(run.name for run in runs)
    named = [
        run.name if shared[run.name] == 1 else f"{run.name} · {run.folder.resolve().name}" for run in runs
    ]
    again = Counter(named)
    return [name if again[name] == 1 else f"{name} ({i + 1})" for i, name in enumerate(named)]


def _accuracies(runs: Sequence[Record], names: Sequence[str], x: str) -> list[Curve]:
    """Without bands: those of several runs hide each other; the table has the intervals."""
    curves = [accuracy_curve(run, x) for run in runs]
    return [_styled(name, curve.points, i) for i, (name, curve) in enumerate(zip(names, curves, strict=True))]


def _curves(runs: Sequence[Record], names: Sequence[str], metric: str, x: str) -> list[Curve]:
    return [
        _styled(name, series(run.evals, metric, x), i)
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]


def _styled(name: str, points: Sequence[tuple[float, float]], i: int) -> Curve:
    return Curve(name, points, colour=i, dashed=i // COLOURS % 2 == 1)


def _cards(charts: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(charts)}</div>' if any(charts) else ""


def _key(names: Sequence[str]) -> str:
    items = "".join(
        '<li><svg viewBox="0 0 24 8" aria-hidden="true">'
        f'<path style="stroke:var(--c{i % COLOURS});stroke-width:3;'
        f'stroke-dasharray:{"5 4" if i // COLOURS % 2 else "none"}" d="M1 4h22"/></svg>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend" style="margin-bottom:10px">{items}</ul>'


def _table(runs: Sequence[Record], names: Sequence[str]) -> str:
    head = (
        "run",
        "iterations",
        "accuracy before",
        "after",
        "95% interval",
        "best",
        "reward",
        "diversity",
        "drift",
    )
    head += ("time", "passes", "backwards")
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        known = [estimate for line in run.evals if (estimate := accuracy_of(line))]
        before, after = (known[0], known[-1]) if known else (None, None)
        seconds = run.last("seconds")
        finals = [
            _final(run, "iteration", counter=True),
            f"{before.value:.1%}" if before else "–",
            f"{after.value:.1%}" if after else "–",
            f"{after.low:.1%} – {after.high:.1%}" if after else "–",
            f"{max(estimate.value for estimate in known):.1%}" if known else "–",
            _final(run, "reward"),
            _final(run, "diversity"),
            _final(run, "monitor/drift"),
            duration(seconds) if seconds is not None else "–",
            _final(run, "evaluations", counter=True),
            _final(run, "backwards", counter=True),
        ]
        swatch = f'<i style="background:var(--c{i % COLOURS})"></i>'
        rows.append(
            f"<tr><td>{swatch}{escape(name)}</td>" + "".join(f"<td>{text}</td>" for text in finals) + "</tr>"
        )
    headings = "".join(f'<th scope="col">{text}</th>' for text in head)
    table = f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="card scroll">{table}</div>'


def _final(run: Record, metric: str, *, counter: bool = False) -> str:
    values = series(run.evals, metric)
    value = run.last(metric) if counter else (values[-1][1] if values else None)
    return "–" if value is None else number(value)
