"""The shell of a report: one HTML file with its style inside, light and dark, from 360 pixels up."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css").read_text("utf-8")

WAVE = (
    '<svg viewBox="0 0 60 32" fill="none" stroke="currentColor" stroke-width="5" stroke-linecap="round" '
    'aria-hidden="true"><path d="M4 9c9-8 17 8 26 0s17-8 26 0" opacity=".45"/>'
    '<path d="M4 23c9-8 17 8 26 0s17-8 26 0"/></svg>'
)


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole HTML document; empty sections are left out."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n"
        f'<header><div class="brand">{WAVE}Thalweg</div>'
        f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n"
        f"{body}\n<footer>This file is whole: it loads nothing from anywhere.</footer></main></body></html>\n"
    )


def section(heading: str, body: str, *, lead: str = "") -> str:
    """A headed section, or nothing without a body."""
    if not body:
        return ""
    words = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(heading)}</h2>{words}{body}</section>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names and values."""
    return (
        '<dl class="facts">'
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
        + "</dl>"
    )
