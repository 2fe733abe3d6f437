"""Prompts: where they come from, and which ones an iteration takes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from pydantic import PositiveInt

from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.core.part import Part
from thalweg.core.values import Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.models.sizes import KEYS, SampleSize
from thalweg.training.data.sources import Source, read_prompts
from thalweg.worlds import World, find_world


class Data(Part):
    """The `data` section of a recipe."""

    prompts: str = "training"
    """`training` or `held_out` of the model's world; a file: .txt with a prompt a line, .jsonl with an object
    a line, or .parquet; or a dataset: its folder, or owner/name on the Hugging Face hub.
    """
    split: str = "train"
    """Part of a dataset; files have none."""
    text_column: str = "text"
    """Key or column that holds the prompt; the others are its metadata."""
    streaming: bool = False
    """Read prompts as they are needed and never hold them all."""
    shuffle_buffer: PositiveInt = 1000
    """Prompts held and drawn in random order before the next ones are read, where `streaming`."""
    prompts_per_iteration: PositiveInt = 12
    """P: prompts of one iteration."""
    sizes: tuple[SampleSize, ...] = ()
    """Sizes of samples, of which each prompt that names none itself gets one, drawn anew in every iteration;
    held-out prompts keep theirs. Empty: the model's own.
    """


class PromptStream:
    """Prompts of a source that is too large to hold.

    A buffer is filled in the order of the source, drawn to its end in an order that the seed decides, and
    filled anew; after the last prompt the source starts over. So the prompt at a place depends on the source
    and the seed alone: an interrupted run reads up to its place again and goes on with the same prompts.
    """

    def __init__(self, source: Source, buffer_size: int, world: World | None = None) -> None:
        self._source, self._size, self._world = source, buffer_size, world
        self._restart()
        self._fill()  # a source that cannot be read is refused before training

    def at(self, place: int, seed: int) -> Prompt:
        """The prompt at a place of the endless stream; reads on from where the last one was."""
        if place < self._start:
            self._restart()
            self._fill()
        while place >= self._start + len(self._buffer):
            self._start += len(self._buffer)
            self._number += 1
            self._fill()
        order = Address(seed, "order", self._number, path=(2,)).permutation(len(self._buffer))
        return self._buffer[int(order[place - self._start])]

    def head(self, count: int) -> tuple[Prompt, ...]:
        """The first prompts of the source, in its order."""
        return tuple(prompt for _, prompt in islice(_checked(self._source, self._world), count))

    def _restart(self) -> None:
        self._start, self._number = 0, 0
        self._buffer: list[Prompt] = []
        self._reader = _checked(self._source, self._world)

    def _fill(self) -> None:
        self._buffer = [prompt for _, prompt in islice(self._reader, self._size)]
        if not self._buffer:
            self._reader = _checked(self._source, self._world)
            self._buffer = [prompt for _, prompt in islice(self._reader, self._size)]


def open_prompts(data: Data, world: str | None) -> "tuple[Prompt, ...] | PromptStream":
    """All prompts of the `data` section, or a stream of them."""
    if not data.streaming:
        return load_prompts(data.prompts, world, split=data.split, text_column=data.text_column)
    source = Source(name=data.prompts, split=data.split, text_column=data.text_column, streaming=True)
    return PromptStream(source, data.shuffle_buffer, None if world is None else find_world(world))


def held_out_prompts(
    data: Data,
    evaluation: Evaluation,
    world: str | None,
    training: "tuple[Prompt, ...] | PromptStream | None" = None,
) -> tuple[Prompt, ...]:
    """The prompts of the `evaluation` section; `training` saves reading those of `data` again."""
    if evaluation.prompts != "data":
        key, split = "evaluation.prompts", evaluation.split
        prompts = load_prompts(evaluation.prompts, world, key, split=split, text_column=data.text_column)
        return tuple(_with_sizes(prompts, data, evaluation.seed))
    training = open_prompts(data, world) if training is None else training
    if isinstance(training, PromptStream):
        assert evaluation.num_prompts is not None  # the recipe was checked
        training = training.head(evaluation.num_prompts)
    return tuple(_with_sizes(training, data, evaluation.seed))


def load_prompts(
    source: str,
    world: str | None,
    key: str = "data.prompts",
    *,
    split: str = "train",
    text_column: str = "text",
) -> tuple[Prompt, ...]:
    """All prompts of a source, which the recipe names under `key`."""
    if source in ("training", "held_out"):
        if world is None:
            raise UserError(f"{key}='{source}': only an embedded world has its own; name a file")
        of = find_world(world)
        return of.training_prompts() if source == "training" else of.held_out_prompts()
    named = Source(name=source, key=key, split=split, text_column=text_column)
    return tuple(prompt for _, prompt in _checked(named, None if world is None else find_world(world)))


def _checked(source: Source, world: World | None) -> Iterator[tuple[str, Prompt]]:
    """The prompts of a source, at least one, in words that the world knows."""
    is_empty = True
    for where, prompt in read_prompts(source):
        if world is not None:
            try:
                world.tokenize([prompt.text])
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        is_empty = False
        yield where, prompt
    if is_empty:
        raise UserError(f"{source.key}='{source.name}': the file holds no prompt; give at least one line")


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


def draw_prompts(
    prompts: "Sequence[Prompt] | PromptStream", data: Data, seed: int, iteration: int
) -> list[Prompt]:
    """The P prompts of an iteration. All prompts come once, in random order, before any comes again."""
    places = range(iteration * data.prompts_per_iteration, (iteration + 1) * data.prompts_per_iteration)
    if isinstance(prompts, PromptStream):
        return _with_sizes([prompts.at(place, seed) for place in places], data, seed, iteration)
    drawn: list[Prompt] = []
    for at in places:
        epoch, place = divmod(at, len(prompts))
        drawn.append(prompts[_order(seed, epoch, len(prompts))[place]])
    return _with_sizes(drawn, data, seed, iteration)


def _with_sizes(
    prompts: Sequence[Prompt], data: Data, seed: int, iteration: int | None = None
) -> list[Prompt]:
    """The prompts, each with a size; in no iteration they are the held-out ones."""
    if not data.sizes:
        return list(prompts)
    path, sized = (1,) if iteration is None else (), list[Prompt]()
    for slot, prompt in enumerate(prompts):
        draw = Address(seed, "size", iteration or 0, slot, path=path).uniform((1,))
        asked = data.sizes[int(float(draw) * len(data.sizes))].asked
        has_own = any(prompt.metadata.get(key) is not None for key in KEYS)
        sized.append(prompt if has_own else replace(prompt, metadata={**prompt.metadata, **asked}))
    return sized


def _order(seed: int, epoch: int, count: int) -> list[int]:
    return Address(seed, "order", epoch, path=(0,)).permutation(count).tolist()
