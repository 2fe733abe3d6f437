"""Writes what the stored results say into the documentation: no number is typed by hand.

    python benchmarks/pages.py

A page of a method gets a paragraph between `<!-- numbers -->` and `<!-- end -->`; any page gets the named
columns of a stored table between `<!-- table FOLDER: COLUMN, ... -->` and `<!-- end -->`, where COLUMN may be
the beginning of a title; after `<!-- trials FOLDER -->` the learning rates that were tried for it; after
`<!-- looks FOLDER -->` the single runs of its `looks.json`, each with the keys that it changed; and after
`<!-- stored FILE -->` a table that another benchmark wrote. A test holds the pages against the results.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thalweg.core.files import write_whole
from thalweg.training.bench import stored_curve, stored_results
from thalweg.training.compare import BASELINE, OTHER_TASK, table

DOCS = Path(__file__).parents[1] / "docs"
TASKS = {"main-scenes": "Scenes", "main-glyphs": "Glyphs", "trajectory": "Scenes", "forward": "Scenes"}
"""Folders of docs/results, and what was learnt there; of one task the first that has the recipe counts."""
PAGES = {"forward": "forward"}
"""Which page shows a folder, where it is not the index."""
AGAIN = ("trajectory-again", "forward-again")
"""Folders whose tables stand on pages, but which methods do not quote."""
NUMBERS = re.compile(r"(<!-- numbers -->\n).*?(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table ([\w-]+): ([^>]*) -->\n).*?(<!-- end -->)", re.DOTALL)
TRIALS = re.compile(r"(<!-- trials ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
LOOKS = re.compile(r"(<!-- looks ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
STORED = re.compile(r"(<!-- stored ([\w/.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
RATES = ("x0.5", "x1", "x2")
"""Folders of trials: the recipe's own learning rate times that."""


@dataclass(frozen=True)
class Table:
    """The stored table of a comparison: its titles, and each recipe's cells by title."""

    budget: float
    titles: Sequence[str]
    rows: Mapping[str, Mapping[str, str]]
    trials: Mapping[str, "Table"] = field(default_factory=dict)
    """Of the learning rates that were tried before it, by the name of their folder."""

    def title(self, beginning: str) -> str:
        """The title that is asked for, or the first that begins so."""
        if beginning in self.titles:
            return beginning
        return next(title for title in self.titles if title.startswith(beginning))


def stored_table(folder: Path) -> Table | None:
    """None where nothing is stored."""
    results = stored_results(folder)
    if not results:
        return None
    head, _, *body = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(results, stored_curve(folder)).splitlines()
    ]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in body}
    tried = {rate: stored_table(folder / "trials" / rate) for rate in RATES}
    return Table(results[0].budget, head, rows, {rate: table for rate, table in tried.items() if table})


def numbers_of(recipe: str, tables: Mapping[str, Table]) -> str:
    """What a page of a method says of its runs: a paragraph, or a line where there are none."""
    said, page = dict[str, str](), "index"
    for folder, task in TASKS.items():
        if folder in tables and recipe in tables[folder].rows and task not in said:
            said[task], page = _sentences(recipe, task, tables[folder]), PAGES.get(folder, "index")
    if not said:
        return "Not measured yet: [results](../results/index.md)."
    claim = next(t.rows[recipe]["published claim"] for t in tables.values() if recipe in t.rows)
    published = [f"Published: {claim}."] if claim else []
    return " ".join(["**Our numbers.**", *said.values(), *published, f"[Results](../results/{page}.md)."])


def _sentences(recipe: str, task: str, table: Table) -> str:
    row = table.rows[recipe]
    words = (
        f"{task}, {table.budget:g} s of processor time at learning rate {row['learning rate']}, seeds "
        f"{row['seeds']}: strict {row['base']} -> {row['final']}, best {row['best']}, diversity kept "
        f"{row['diversity kept']}, {row['passes']} passes, {row['with gradient']} with gradient."
    )
    costs = [title for title in table.titles if " to " in title]
    spent = [row[title] for title in costs]
    if recipe == BASELINE or not costs or set(spent) == {OTHER_TASK}:
        return words
    level = costs[0].split(" to ")[1]
    if set(spent) == {"not reached"}:
        return f"{words} The {level} that `{BASELINE}` ends with is not reached."
    return f"{words} To the {level} that `{BASELINE}` ends with: seconds {spent[0]}, passes {spent[1]}."


def filled(page: str, recipe: str, tables: Mapping[str, Table], results: Path = DOCS / "results") -> str:
    """The page with its paragraph and its tables written anew."""

    def written(text: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
        return lambda match: f"{match[1]}{text(match)}\n{match[match.lastindex or 0]}"

    page = NUMBERS.sub(written(lambda _: numbers_of(recipe, tables)), page)
    page = TABLE.sub(written(lambda match: _columns(tables[match[2]], match[3].split(", "))), page)
    page = TRIALS.sub(written(lambda match: _tried(tables[match[2]])), page)
    page = STORED.sub(written(lambda match: (results / match[2]).read_text("utf-8").strip()), page)
    return LOOKS.sub(written(lambda match: _looks(results / match[2] / "looks.json")), page)


def _columns(table: Table, beginnings: Sequence[str]) -> str:
    titles = [table.title(beginning) for beginning in beginnings]
    rows = [[row[title] for title in titles] for row in table.rows.values()]
    return _joined([titles, ["---"] * len(titles), *rows])


def _joined(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _tried(table: Table) -> str:
    """Where each rate led, and what a trial of the own rate took."""
    own, spent = table.trials["x1"].rows, ("iterations", "passes", "with gradient")
    rows = [["recipe", *(f"own rate {rate}" for rate in RATES), "own rate", "taken", *spent]]
    rows.append(["---"] * len(rows[0]))
    for name, row in own.items():
        led = [table.trials[rate].rows[name]["final"] for rate in RATES]
        taken = table.rows[name]["learning rate"] if name in table.rows else ""
        rows.append([name, *led, row["learning rate"], taken, *(row[title] for title in spent)])
    return _joined(rows)


def _looks(file: Path) -> str:
    """A row a run, the keys of the evaluation left out."""
    rows = [["recipe", "changed", "learning rate", "CPU s", "iterations", "base", "final", "best"]]
    rows.append(["---"] * len(rows[0]))
    for run in json.loads(file.read_text("utf-8")):
        changed = ", ".join(f"`{key}`" for key in run["changes"] if not key.startswith("evaluation."))
        spent = [f"{run['learning_rate']:g}", f"{run['budget']:g}", str(run["iterations"])]
        scores = [f"{run[name]:.3f}" for name in ("base", "final", "best")]
        rows.append([run["recipe"], changed or "nothing", *spent, *scores])
    return _joined(rows)


def pages(docs: Path = DOCS) -> dict[Path, str]:
    """Every page that holds numbers, as it should be."""
    found = {name: stored_table(docs / "results" / name) for name in (*TASKS, *AGAIN)}
    tables = {name: table for name, table in found.items() if table is not None}
    paths = [*sorted((docs / "methods").glob("*.md")), *sorted((docs / "results").glob("*.md"))]
    return {path: filled(path.read_text("utf-8"), path.stem, tables, docs / "results") for path in paths}


if __name__ == "__main__":
    for path, page in pages().items():
        write_whole(path, page)
