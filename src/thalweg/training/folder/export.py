"""A trained model on its way out: written, read back into a fresh stock pipeline, compared, and described."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole
from thalweg.models import DiffusersModel
from thalweg.training.folder.saved import SavedRun, load_run

TOLERANCE = 1e-5
"""Largest difference, relative to the largest value, between what was written and what was trained, in
float32.
"""
LAYOUTS = ("diffusers", "comfyui")
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37")


@dataclass(frozen=True)
class Exported:
    """Files, and how far a fresh pipeline with them is from the trained one."""

    paths: tuple[Path, ...]
    difference: float


def export(run: str | Path, out: Path, layout: str = "diffusers", merged: bool = False) -> Exported:
    """Write the evaluated weights of a run's last checkpoint into a new folder, with a model card.

    The folder appears whole, after a fresh pipeline gave the same velocities with it; else UserError. All of
    it is worked out in float32, whatever the run's precision.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: no such layout; give {' or '.join(LAYOUTS)}")
    if merged and layout != "diffusers":
        raise UserError(f"--merged writes a pipeline, which --layout {layout} is not; leave one of them out")
    saved = load_run(run, ["model.precision=float32"]) if _is_real(load_run(run)) else load_run(run)
    model = saved.recipe.model
    if not isinstance(model, DiffusersModel):
        raise UserError(
            f"{run}: only models of diffusers pipelines are exported; the weights of others are "
            "safetensors in its checkpoints"
        )
    if not saved.checkpoints:
        raise UserError(f"{run}: no checkpoint there yet, so there is nothing to export; train it first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is not an empty folder; give a new one")
    partial = out.with_name(f".partial-{os.getpid()}-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        error = _write(saved, model, partial, layout, merged)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(tuple(sorted(path for path in out.rglob("*") if path.is_file())), error)


def _is_real(saved: SavedRun) -> bool:
    return isinstance(saved.recipe.model, DiffusersModel)


def _write(saved: SavedRun, model: DiffusersModel, folder: Path, layout: str, merged: bool) -> float:
    from thalweg.models.diffusers.export import AsComfyUI, AsDiffusers, AsPipeline, difference, outputs

    form = AsPipeline() if merged else AsComfyUI() if layout == "comfyui" else AsDiffusers()
    policy: Any = saved.policy(saved.recipe.evaluation.weights)
    expected, usage = outputs(policy), form.usage(policy)
    form.write(policy, folder)
    del policy  # a model that fits once is not held twice
    error = difference(form, model, folder, expected)
    if not error <= TOLERANCE:
        raise UserError(
            f"export: a fresh pipeline with what was written differs by {error:.2g} (relative; at most "
            f"{TOLERANCE:g}), so nothing was kept; diffusers may read this family's adapters in another way: "
            "try --merged"
        )
    _describe(saved, folder, usage, error)
    return error


def _describe(saved: SavedRun, folder: Path, usage: Sequence[str], error: float) -> None:
    """README.md as a model card, with the reward's curve, the last samples and the recipe beside it."""
    recipe, model = saved.recipe, saved.recipe.model
    assert isinstance(model, DiffusersModel)
    write_whole(folder / "recipe.yaml", recipe.to_yaml())
    evals = [line for line in saved.metrics if line["event"] == "eval"]
    pictures = _samples(saved.path / "samples", folder)
    curve = [(line["iteration"], line["reward"]) for line in saved.metrics if line["event"] == "train"]
    if len(curve) > 1:
        write_whole(folder / "reward.svg", curve_picture({"reward": curve}))
    names = [n for n in ("reward", "accuracy", "diversity") if evals and n in evals[0] and n in evals[-1]]
    lines = [
        "---",
        f"base_model: {model.path}",
        "library_name: diffusers",
        "tags: [thalweg, reinforcement-learning]",
        "---",
        "",
        f"# {model.path.rstrip('/').split('/')[-1]}, trained by {recipe.name}",
        "",
        f"{recipe.title}. {recipe.paper}. Trained from `{model.path}` by the recipe in `recipe.yaml`, with "
        f"rewards {', '.join(f'`{reward.name}`' for reward in recipe.rewards)}.",
        "",
        "**License: to be stated by whoever publishes this; the base model's own license holds for what is "
        "made of it.**",
        "",
        "```python",
        *usage,
        "```",
        "",
        f"After it was written, a fresh pipeline with these files was compared with the trained one: "
        f"velocities differ by {error:.1g}, relative to the largest, in float32.",
        "",
        *(["| held out | before | after |", "|---|---|---|"] if names else []),
        *(f"| {name} | {_short(evals[0], name)} | {_short(evals[-1], name)} |" for name in names),
        "",
        *(["![reward of each iteration](reward.svg)", ""] if len(curve) > 1 else []),
        *(f"![samples, {when}]({name})" for when, name in pictures),
    ]
    write_whole(folder / "README.md", "\n".join(lines).rstrip() + "\n")


def _short(line: Mapping[str, Any], name: str) -> str:
    return f"{line[name]:.4g} (iteration {line['iteration']})"


def _samples(source: Path, folder: Path) -> list[tuple[str, str]]:
    """Copy the first and the last sheet of samples."""
    sheets = sorted(source.glob("*.png"))
    chosen = {"before": sheets[0], "after": sheets[-1]} if len(sheets) > 1 else {}
    return [
        (when, Path(shutil.copy(sheet, folder / f"samples-{when}.png")).name)
        for when, sheet in chosen.items()
    ]


def curve_picture(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """An SVG of named curves (iteration, value), with the ends of both axes in numbers."""
    across, up = zip(*(point for points in curves.values() for point in points), strict=True)
    left, right, low, high = min(across), max(across), min(up), max(up)
    width, height = 600, 260
    texts = [
        (54, 25, "end", "#333", f"{high:.3g}"),
        (54, height - 36, "end", "#333", f"{low:.3g}"),
        (60, height - 15, "start", "#333", f"{left:g}"),
        (width - 20, height - 15, "end", "#333", f"iteration {right:g}"),
    ]
    drawn = []
    for number, (name, points) in enumerate(curves.items()):
        placed = " ".join(
            f"{60 + (x - left) / ((right - left) or 1) * (width - 80):.1f},"
            f"{20 + (high - y) / ((high - low) or 1) * (height - 60):.1f}"
            for x, y in points
        )
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        texts.append((70, height - 50 - 16 * number, "start", colour, name))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<path d="M60 20V{height - 40}H{width - 20}" fill="none" stroke="#999"/>',
            *drawn,
            *(
                f'<text x="{x}" y="{y}" text-anchor="{a}" fill="{c}">{escape(t)}</text>'
                for x, y, a, c, t in texts
            ),
            "</svg>\n",
        ]
    )
