"""`report.html` of a run: what it reached, what to worry about and what it cost, in one whole file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from thalweg.core.files import write_whole
from thalweg.evaluation.advice import (
    BORDER_SHIFT,
    DRIFT,
    DUPLICATE_RISE,
    NO_VARIANCE,
    RATIO_SHARE,
    STATISTIC_SHIFT,
    warnings,
)
from thalweg.evaluation.charts import PERCENT, Axis, Curve, chart, interval_bars, number, stacked_bar
from thalweg.evaluation.confidence import difference
from thalweg.evaluation.grid import before_and_after
from thalweg.evaluation.page import facts, page, section
from thalweg.evaluation.record import Record, accuracy_of, number_in, read_run, series, task_names


@dataclass(frozen=True)
class Shown:
    """How a metric is drawn."""

    metric: str
    title: str
    axis: Axis
    note: str
    reach: tuple[float, ...] = (0.0,)
    """Values the axis includes."""
    around: float | None = None
    """Instead of `reach`: the share of the base's value that the axis includes to both sides."""


LUMA, SHARE = Axis("luma", bounds=(0.0, 1.0)), Axis("0 to 1", bounds=(0.0, 1.0))
NEAR = "should stay near the base"
MONITORS = (
    Shown("diversity/distance", "Diversity: distance", Axis("1 − cosine"), "mean over the pairs of a prompt"),
    Shown("diversity/vendi", "Diversity: Vendi score", Axis("images"), "that really differ", reach=(1.0,)),
    Shown(
        "diversity/attribute_entropy", "Diversity: attributes", Axis("bit"), "of what a prompt leaves free"
    ),
    Shown(
        "monitor/held_out_reward",
        "Held-out reward",
        Axis("reward"),
        "never trained on; should not fall",
        around=0.1,
    ),
    Shown(
        "monitor/drift",
        "Drift from the base",
        Axis("base variances"),
        "1: as far as its own spread",
        (0.0, DRIFT),
    ),
    Shown(
        "monitor/feature_shift",
        "Change of the same seeds",
        Axis("feature distance"),
        "0: unchanged, √2: unrelated",
    ),
    Shown(
        "monitor/duplicates",
        "Near-duplicates",
        PERCENT,
        "images with a twin in their group",
        (0.0, DUPLICATE_RISE),
    ),
    Shown(
        "monitor/border", "Border against the base", SHARE, "bleaching, frames, patterns", (0.0, BORDER_SHIFT)
    ),
    Shown("monitor/brightness", "Brightness", LUMA, NEAR, around=STATISTIC_SHIFT),
    Shown("monitor/saturation", "Saturation", SHARE, NEAR, around=STATISTIC_SHIFT),
    Shown("monitor/contrast", "Contrast", LUMA, NEAR, around=STATISTIC_SHIFT),
    Shown("monitor/high_frequency", "High-frequency energy", PERCENT, NEAR, around=STATISTIC_SHIFT),
)
HEALTH = (
    Shown("ratio_deviation", "Ratio deviation", Axis("|ratio − 1|"), "before the first update; should be 0"),
    Shown("clip_fraction", "Clipped ratios", PERCENT, "share of loss terms held by the clip"),
    Shown("kl", "KL from the reference", Axis("nats"), "grows as the policy leaves the base"),
    Shown("log_ratio", "Log ratio", Axis("nats"), "mean of log(new / old); below 0 the policy moved away"),
    Shown(
        "distance/old", "Distance from the old policy", Axis("velocity²"), "mean squared; grows with the step"
    ),
    Shown("loss", "Loss", Axis("loss"), "its level says little by itself"),
    Shown("grad_norm", "Gradient norm", Axis("norm"), "before clipping"),
    Shown(
        "zero_variance_fraction",
        "Groups without variance",
        PERCENT,
        "they teach nothing; dotted: half",
        (0.0, NO_VARIANCE),
    ),
    Shown("reward_std", "Spread of the reward", Axis("reward"), "standard deviation over the samples"),
    Shown("skipped_updates", "Skipped updates", Axis("updates"), "so far; should be 0", (0.0, 1.0)),
)


def write_report(run_folder: Path) -> Path:
    """Writes report.html into the run's folder, from whatever it holds by now, and returns the path."""
    run = read_run(run_folder)
    recipe = f'<details class="card"><summary>recipe.yaml</summary><pre>{escape(run.recipe)}</pre></details>'
    sections = [
        _headline(run),
        section("Warnings", _warnings(run)),
        section(
            "Accuracy",
            _accuracy(run),
            lead="Share of held-out prompts drawn exactly right; bands are 95% intervals.",
        ),
        section(
            "Before and after",
            before_and_after(run.folder / "samples"),
            lead="The same prompts and seeds; every column is one seed.",
        ),
        section("Reward", _rewards(run)),
        section(
            "Diversity and monitors",
            _monitors(run),
            lead="What a rising reward can hide. Dotted: the base; axes reach as far as a warning would.",
        ),
        section("Training", _health(run)),
        section("Cost", _cost(run)),
        section("Recipe", recipe if run.recipe else "<p>This folder holds no recipe.yaml.</p>"),
        section("Versions and hardware", _facts(run)),
    ]
    return write_whole(run.folder / "report.html", page(run.name, subtitle(run), sections))


def subtitle(run: Record) -> str:
    """How far the run has come, in a line."""
    done, planned = run.last("iteration"), run.setting("iterations")
    if done is None:
        return "no metrics yet"
    of = f" of {planned}" if isinstance(planned, int) else ""
    started = str(run.facts.get("started", "")).replace("T", " ")
    return f"iteration {done:.0f}{of}" + (f" · started {started}" if started else "")


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def in_words(value: object) -> str:
    """A value of run.json as plain text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(in_words(item) for item in value)
    return "none" if value is None else str(value)


def _headline(run: Record) -> str:
    known = [(line, estimate) for line in run.evals if (estimate := accuracy_of(line))]
    if not known:
        hero = "<div><h2>Strict accuracy</h2><p>Not evaluated yet.</p></div>"
    elif len(known) == 1:
        (line, base), rows = known[0], [("base", known[0][1].value, known[0][1].low, known[0][1].high)]
        hero = (
            f'<div><h2>Strict accuracy on held-out prompts</h2><p class="big">{base.value:.1%}</p>'
            f"<p>at iteration {number_in(line, 'iteration') or 0:.0f}; not evaluated since</p></div>"
            + interval_bars(rows, label="strict accuracy")
        )
    else:
        (_, base), (line, last) = known[0], known[-1]
        gain = difference(last, base)
        tone = "up" if gain.value >= 0 else "down"
        best_line, best = max(known, key=lambda pair: pair[1].value)
        peak = (
            ""
            if best.value == last.value
            else (f"<p>Best: {best.value:.1%} at iteration {number_in(best_line, 'iteration') or 0:.0f}</p>")
        )
        rows = [
            ("before", base.value, base.low, base.high),
            (f"iteration {number_in(line, 'iteration') or 0:.0f}", last.value, last.low, last.high),
        ]
        hero = (
            "<div><h2>Strict accuracy on held-out prompts</h2>"
            f'<p class="big"><span class="from">{100 * base.value:.1f}</span>'
            f'<span class="arrow">→</span>{last.value:.1%}</p>'
            f'<p><span class="{tone}">{100 * gain.value:+.1f} points</span> '
            f"(95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})</p>{peak}</div>"
            + interval_bars(rows, label="strict accuracy")
        )
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>"
        for name, value, small in _tiles(run)
    )
    return f'<section><div class="card headline">{hero}</div><dl class="tiles">{tiles}</dl></section>'


def _tiles(run: Record) -> list[tuple[str, str, str]]:
    tiles = []
    rewards, where = series(run.evals, "reward"), "held-out prompts"
    if not rewards:
        rewards, where = series(run.trains, "reward"), "training prompts"
    if rewards:
        change = f"{number(rewards[0][1])} → " if len(rewards) > 1 else ""
        tiles.append(("Reward", f"{change}{number(rewards[-1][1])}", where))
    distances = series(run.evals, "diversity")
    if len(distances) > 1 and distances[0][1] > 0:
        tiles.append(
            ("Diversity kept", f"{distances[-1][1] / distances[0][1]:.0%}", "of the base's pairwise distance")
        )
    if (seconds := run.last("seconds")) is not None:
        speed = series(run.trains, "samples_per_second")
        tiles.append(
            ("Time", duration(seconds), f"{number(speed[-1][1])} images/s" if speed else "since the start")
        )
    if (passes := run.last("evaluations")) is not None:
        tiles.append(
            ("Network passes", number(passes), f"{number(run.last('backwards') or 0)} with a backward")
        )
    if hardware := run.facts.get("hardware"):
        known = hardware if isinstance(hardware, dict) else {"hardware": hardware}
        named = [in_words(known[key]) for key in ("accelerator", "processor", "hardware") if known.get(key)]
        rest = [f"{in_words(known[key])} {key}" for key in ("cores", "threads") if known.get(key)]
        if processes := series(run.trains, "processes"):
            rest.append(f"{processes[-1][1]:.0f} process{'es' if processes[-1][1] > 1 else ''}")
        tiles.append(("Hardware", named[0] if named else "unknown", ", ".join([*named[1:], *rest])))
    return tiles


def _warnings(run: Record) -> str:
    clip_range = run.setting("objective.clip_range")
    given = run.setting("rollout.given") or []
    found = warnings(
        run.evals,
        run.trains,
        clip_range=clip_range if isinstance(clip_range, int | float) else None,
        draws_steps=run.setting("rollout.kernel") is not None,
        draws_samples=not given or len(given) != run.setting("rollout.group_size"),
    )
    if run.unreadable:
        found.append(
            f"`metrics.jsonl` has {run.unreadable} {'line' if run.unreadable == 1 else 'lines'} that cannot "
            f"be read; this "
            "page is made of the others."
        )
    if not run.evals:
        found.append(
            "The run has no evaluation yet, so nothing can be said about its accuracy and diversity."
        )
    if not found:
        return '<p class="fine">Nothing to report: no metric crossed a threshold.</p>'
    marked = (re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)) for text in found)
    return '<ul class="warnings">' + "".join(f"<li>{text}</li>" for text in marked) + "</ul>"


def accuracy_curve(run: Record, x: str = "iteration", *, name: str = "accuracy", colour: int = 0) -> Curve:
    """Accuracy with its band against iteration, seconds or evaluations."""
    known = [
        (position, estimate)
        for line in run.evals
        if (position := number_in(line, x)) is not None and (estimate := accuracy_of(line))
    ]
    band = [(estimate.low, estimate.high) for _, estimate in known]
    return Curve(
        name, [(position, estimate.value) for position, estimate in known], band, colour, dashed=colour >= 4
    )


def _accuracy(run: Record) -> str:
    overall = accuracy_curve(run)
    if not overall.points:
        return ""
    base = ("base", overall.points[0][1])
    wide = chart("Overall: mean of the tasks", [overall], y=PERCENT, reference=base, tall=True)
    tasks = []
    for task in task_names(run.evals):
        points = series(run.evals, f"accuracy/{task}")
        if points:
            title = task.replace("_", " ").capitalize()
            base = ("base", points[0][1])
            tasks.append(chart(title, [Curve(task, points)], y=PERCENT, reference=base, reach=(0.0, 1.0)))
    return f'<div class="wide">{wide}</div>' + (f'<div class="cards">{"".join(tasks)}</div>' if tasks else "")


def _rewards(run: Record) -> str:
    names = [
        key
        for line in [*run.evals, *run.trains]
        for key in line
        if key == "reward" or key.startswith("reward/")
    ]
    charts, total = [], [series(run.trains, "reward"), series(run.evals, "reward")]
    for name in dict.fromkeys(names):
        curves = [
            Curve("training prompts", series(run.trains, name), colour=0, noisy=True),
            Curve("held-out prompts", series(run.evals, name), colour=1),
        ]
        if name != "reward" and all(c.points == t for c, t in zip(curves, total, strict=True)):
            continue  # the only reward, with weight 1
        title = "Reward" if name == "reward" else f"Reward: {name.split('/', 1)[1]}"
        charts.append(chart(title, curves, y=Axis("reward"), legend=True))
    return f'<div class="cards">{"".join(charts)}</div>' if charts else ""


def _monitors(run: Record) -> str:
    charts = []
    for shown in MONITORS:
        points = series(run.evals, shown.metric)
        if points:
            base = points[0][1]
            reach = (
                shown.reach
                if shown.around is None
                else (base * (1 - shown.around), base * (1 + shown.around))
            )
            colour = 2 if shown.metric.startswith("diversity") else 5
            charts.append(_shown(shown, Curve(shown.metric, points, colour=colour), reach, ("base", base)))
    return f'<div class="cards">{"".join(charts)}</div>' if charts else ""


def _health(run: Record) -> str:
    charts, clip_range = [], run.setting("objective.clip_range")
    for shown in HEALTH:
        reference = None
        if shown.metric == "ratio_deviation" and isinstance(clip_range, int | float):
            reference = ("1% of the clip range", RATIO_SHARE * clip_range)
            shown = replace(shown, note=f"{shown.note}; dotted: 1% of the clip range")
        if shown.metric == "zero_variance_fraction":
            reference = ("half", NO_VARIANCE)
        points = series(run.trains, shown.metric)
        if points:
            charts.append(
                _shown(
                    shown,
                    Curve(shown.metric, points, colour=3, noisy=shown.metric != "skipped_updates"),
                    shown.reach,
                    reference,
                )
            )
    return f'<div class="cards">{"".join(charts)}</div>' if charts else ""


def _shown(shown: Shown, curve: Curve, reach: Sequence[float], reference: tuple[str, float] | None) -> str:
    note = shown.note if shown.axis.suffix else f"{shown.axis.label}; {shown.note}"
    return chart(shown.title, [curve], y=shown.axis, note=note, reference=reference, reach=reach)


def _cost(run: Record) -> str:
    stages: dict[str, float] = {}
    for line in run.lines:
        for key in line:
            if key.startswith("time/") and key != "time/cpu" and (value := number_in(line, key)) is not None:
                stages[key[5:]] = stages.get(key[5:], 0.0) + value
    blocks = []
    seconds = run.last("seconds")
    if stages:
        rest = (seconds or 0.0) - sum(stages.values())
        if rest > 0:
            stages["everything else"] = rest
        parts = [(name, value, duration(value)) for name, value in stages.items() if value > 0]
        blocks.append(
            f'<div class="card"><h3>Time by stage</h3>{stacked_bar(parts, label="time by stage")}</div>'
        )
    evaluations, backwards = run.last("evaluations"), run.last("backwards")
    if evaluations is not None:
        rows = [
            ("without a gradient", evaluations - (backwards or 0.0)),
            ("with a backward", backwards or 0.0),
        ]
        parts = [(name, value, number(value)) for name, value in rows if value > 0]
        bar = stacked_bar(parts, label="network passes")
        samples = [value for _, value in series(run.trains, "samples")]
        words = f"{number(evaluations)} passes of a sample through the network, {number(backwards or 0)} back"
        if samples:
            words += f", for {number(sum(samples))} training images"
        blocks.append(f'<div class="card"><h3>Network passes</h3>{bar}<p class="note">{words}.</p></div>')
    peak = series(run.lines, "memory/peak_mb")
    speed = series(run.trains, "samples_per_second")
    curves = [
        chart("Speed (images per second)", [Curve("speed", speed, colour=2, noisy=True)], y=Axis("images/s")),
        chart("Peak memory (MB)", [Curve("peak memory", sorted(peak), colour=3)], y=Axis("MB")),
    ]
    charts = f'<div class="cards" style="margin-top:12px">{"".join(curves)}</div>' if any(curves) else ""
    return (f'<div class="two">{"".join(blocks)}</div>' if blocks else "") + charts


def _facts(run: Record) -> str:
    if not run.facts:
        return "<p>This folder holds no readable run.json.</p>"
    pairs = [
        (key, in_words(value)) for key, value in run.facts.items() if key not in ("versions", "hardware")
    ]
    for key in ("hardware", "versions"):
        value = run.facts.get(key)
        pairs += [(str(k), in_words(v)) for k, v in value.items()] if isinstance(value, dict) else []
    return f'<div class="card">{facts(pairs)}</div>'
