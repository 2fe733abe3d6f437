"""The before/after grid: rows of the sample sheets a run saved, embedded in the page.

`samples/index.json` says what a sheet holds: {"prompts": [texts], "per_prompt": int, "tile": [width, height],
"files": {"0": "00000000.png", "60": "00000060.png"}}; a sheet has one row a prompt, per_prompt tiles wide.
"""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

MOST_PROMPTS = 24
LARGEST_TILE = 192  # pixels a side in the page; larger tiles are reduced
PIXEL_ART = 96  # tiles up to this size are enlarged without smoothing


def before_and_after(samples: Path) -> str:
    """First and last sheet row by row, or a sentence that says what is missing."""
    index = samples / "index.json"
    if not index.is_file():
        return "<p>This run has saved no sample images yet.</p>"
    try:
        layout = json.loads(index.read_text("utf-8"))
        prompts, (width, height) = [str(p) for p in layout["prompts"]], map(int, layout["tile"])
        sheets = _sheets(samples, layout, (width * int(layout["per_prompt"]), height * len(prompts)))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as problem:
        return f"<p>The sample images cannot be read: {escape(str(problem))}.</p>"
    kind = ' class="pixels"' if max(width, height) <= PIXEL_ART else ""
    blocks = []
    for row, prompt in enumerate(prompts[:MOST_PROMPTS]):
        strips = []
        for name, sheet in sheets:
            strip = sheet.crop((0, row * height, sheet.width, (row + 1) * height))
            said = escape(f"{prompt}, {name}", quote=True)
            strips.append(
                f'<span>{name}</span><img{kind} alt="{said}" title="{said}" src="{_embedded(strip, height)}">'
            )
        blocks.append(
            f'<article class="pair"><h3>{escape(prompt)}</h3><div>{"".join(strips)}</div></article>'
        )
    more = len(prompts) - MOST_PROMPTS
    rest = f'<p class="note">{more} more prompts are in the folder samples.</p>' if more > 0 else ""
    return f'<div class="pairs">{"".join(blocks)}</div>{rest}'


def _sheets(samples: Path, layout: dict[str, Any], size: tuple[int, int]) -> list[tuple[str, Image.Image]]:
    """The sheets of the first and the last iteration that have one, with what to call them."""
    iterations = sorted(layout["files"], key=int)
    chosen = list(dict.fromkeys([iterations[0], iterations[-1]])) if iterations else []
    sheets = []
    for iteration in chosen:
        name = Path(layout["files"][iteration]).name  # a sheet lies in the folder itself
        with Image.open(samples / name) as opened:
            sheet = opened.convert("RGB")
        if sheet.size != size:
            raise ValueError(
                f"{name} is {sheet.size[0]}x{sheet.size[1]}, by index.json it should be {size[0]}x{size[1]}"
            )
        sheets.append((f"iter. {iteration}" if int(iteration) else "before", sheet))
    return sheets


def _embedded(strip: Image.Image, height: int) -> str:
    if height > LARGEST_TILE:
        strip = strip.resize(
            (round(strip.width * LARGEST_TILE / height), LARGEST_TILE), Image.Resampling.LANCZOS
        )
    out = io.BytesIO()
    strip.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
