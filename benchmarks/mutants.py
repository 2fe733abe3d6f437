"""Do the tests notice a wrong sign? Draws mutants of the mathematics and runs the tests on each.

    python benchmarks/mutants.py [--count 60] [--seed 0] [--only 3,17]

A mutant is one change of one expression in flow, credit or objectives: an operator, a comparison, a constant,
a reduction, a sign. Each runs on a copy of the package. Prints a line a mutant and, at the end, the share
killed.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("flow", "credit", "objectives")
TESTS = ("tests/flow", "tests/credit", "tests/objectives", "tests/rollout", "tests/properties")
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARISONS = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq}
METHODS = {
    "mean": "sum",
    "sum": "mean",
    "minimum": "maximum",
    "maximum": "minimum",
    "exp": "expm1",
    "sqrt": "square",
}
SECONDS_A_MUTANT = 900
"""One that takes longer runs for ever, or the machine is busy: look at it."""


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every expression that can be changed, and to what; annotations and messages are left alone."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            skipped |= {id(n) for n in ast.walk(node.annotation)}
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            skipped |= {id(n) for n in ast.walk(node.returns)}
        if isinstance(node, ast.AnnAssign):
            skipped |= {id(n) for n in ast.walk(node.annotation)}
        if isinstance(node, ast.Raise | ast.JoinedStr):
            skipped |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node, f"{type(node.op).__name__} -> {OPERATORS[type(node.op)].__name__}"
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            yield node, f"{type(node.ops[0]).__name__} -> {COMPARISONS[type(node.ops[0])].__name__}"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "drop minus"
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield node, f"{node.attr} -> {METHODS[node.attr]}"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, f"{node.value} -> {node.value + 1}"


def mutate(source: str, index: int) -> str:
    """The source with its index-th place changed."""
    tree = ast.parse(source)
    node, _ = list(places(tree))[index]
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Attribute):
        node.attr = METHODS[node.attr]
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1  # type: ignore[operator]
    return ast.unparse(tree)


def outcome(file: Path, index: int) -> str:
    """`killed`, `timed out` or `SURVIVED`."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        shutil.copytree(ROOT / "src", copy / "src")
        shutil.copytree(ROOT / "tests", copy / "tests")
        shutil.copy(ROOT / "pyproject.toml", copy)
        target = copy / file.relative_to(ROOT)
        target.write_text(mutate(target.read_text(encoding="utf-8"), index), encoding="utf-8")
        folder = file.relative_to(ROOT / "src/thalweg").parts[0]
        tests = sorted(TESTS, key=lambda test: test != f"tests/{folder}")  # the nearest find most, and first
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not gpu", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                timeout=SECONDS_A_MUTANT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "timed out"
        return "killed" if done.returncode else "SURVIVED"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="numbers of mutants, with commas")
    options = parser.parse_args()
    files = sorted(p for name in FOLDERS for p in (ROOT / "src/thalweg" / name).rglob("*.py"))
    every = [
        (file, index, node, what)
        for file in files
        for index, (node, what) in enumerate(places(ast.parse(file.read_text(encoding="utf-8"))))
    ]
    drawn = random.Random(options.seed).sample(every, options.count)
    chosen = [int(n) for n in options.only.split(",") if n] or range(len(drawn))
    found = Counter[str]()
    for number in chosen:
        file, index, node, what = drawn[number]
        found[result := outcome(file, index)] += 1
        where = f"{file.relative_to(ROOT / 'src/thalweg')}:{getattr(node, 'lineno', '?')}"
        print(f"{number:3} {result:9} {where}: {what}", flush=True)
    print(f"{dict(found)} of {len(chosen)}, drawn from {len(every)} places")


if __name__ == "__main__":
    main()
