"""Prompts: where they come from, and which ones an iteration takes."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pydantic import PositiveInt

from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.worlds import World, find_world


class Data(Part):
    """The `data` section of a recipe."""

    prompts: str = "training"
    """`training` or `held_out` of the model's world, or a file: .txt with a prompt a line, or .jsonl with
    objects that have a `text` and any other keys as metadata.
    """
    prompts_per_iteration: PositiveInt = 12
    """P: prompts of one iteration."""


def load_prompts(source: str, world: str | None, key: str = "data.prompts") -> tuple[Prompt, ...]:
    """All prompts of a source, which the recipe names under `key`."""
    if source in ("training", "held_out"):
        if world is None:
            raise UserError(f"{key}='{source}': only an embedded world has its own; name a file")
        of = find_world(world)
        return of.training_prompts() if source == "training" else of.held_out_prompts()
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{key}='{source}': no such file; give training, held_out, or a .txt or .jsonl file")
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{key}='{source}': cannot read '{path.suffix}' files; give .txt or .jsonl")
    read = _read_json if path.suffix == ".jsonl" else _read_text
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{key}='{source}': not UTF-8 text ({error}); save it as such") from None
    numbered = {n: read(line, f"{source}:{n}") for n, line in enumerate(lines, 1) if line.strip()}
    if not numbered:
        raise UserError(f"{key}='{source}': the file holds no prompt; give at least one line")
    if world is not None:
        _require_known_words(numbered, find_world(world), source)
    return tuple(numbered.values())


def require_judged(prompts: Sequence[Prompt], worlds: Iterable[str], key: str, *, by_task: bool) -> None:
    """Raises UserError where a prompt lacks what the judge of one of the worlds reads in its metadata, or the
    `task` by which accuracy is told apart.
    """
    for world in map(find_world, worlds):
        blank = torch.zeros(world.image_shape)
        for prompt in prompts:
            try:
                world.judge(blank, prompt)
                if by_task and "task" not in prompt.metadata:
                    raise KeyError("task")
            except KeyError as error:
                raise UserError(
                    f"{key}: prompt '{prompt.text}' has no {error} in its metadata, which the judge of world "
                    f"'{world.name}' reads; give it in .jsonl lines, or do without that judge"
                ) from None


def _require_known_words(prompts: dict[int, Prompt], world: World, source: str) -> None:
    for number, prompt in prompts.items():
        try:
            world.tokenize([prompt.text])
        except UserError as error:
            raise UserError(f"{source}:{number}: {error}") from None


def draw_prompts(prompts: tuple[Prompt, ...], data: Data, seed: int, iteration: int) -> list[Prompt]:
    """The P prompts of an iteration. All prompts come once, in random order, before any comes again."""
    drawn: list[Prompt] = []
    for at in range(iteration * data.prompts_per_iteration, (iteration + 1) * data.prompts_per_iteration):
        epoch, place = divmod(at, len(prompts))
        drawn.append(prompts[_order(seed, epoch, len(prompts))[place]])
    return drawn


def _order(seed: int, epoch: int, count: int) -> list[int]:
    return Address(seed, "order", epoch, path=(0,)).permutation(count).tolist()


def _read_text(line: str, where: str) -> Prompt:
    return Prompt(line.strip())


def _read_json(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not a JSON object ({error.msg} at column {error.colno}); mend the line"
        ) from None
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise UserError(f"{where}: a prompt is an object with a string 'text'; mend the line")
    return Prompt(entry.pop("text"), entry)
