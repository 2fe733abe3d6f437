"""The nearest known name, for error messages."""

import difflib
from collections.abc import Iterable

SHOWN = 16  # a longer list is no help in one line


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' where a known name is close, else '; known: ...' with the first of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; known: {', '.join(names[:SHOWN])}{more}"
