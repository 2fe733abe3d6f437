"""What a pipeline makes of prompts and condition images: once, and given back at every call of it.

Shapes: B rows, P prompts.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import unwrap
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.core.errors import UserError
from thalweg.core.values import SIZE, Metrics, Prompt
from thalweg.models.diffusers import conditions
from thalweg.models.diffusers.embedding_cache import EmbeddingCache, digest_of_tensors, key_of
from thalweg.models.diffusers.families import Family
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.modular import Modular, name_of
from thalweg.models.diffusers.pictures import is_picture, read_image
from thalweg.models.diffusers.seam import Stopped

IMAGE = "image"
"""The column with the number of a row's condition image; rows of one call share it."""
ALL = -1
"""The number of the pictures that are the call's, the same for all prompts."""
NEGATIVE = "negative_prompt"
REMEMBERED_PROMPTS = 1024
"""Encoded prompts that stay in memory, of the CPU, while they could be encoded or read again."""
REMEMBERED_IMAGES = 64
"""Condition images whose latents stay on the device."""


class Encoder:
    """Encodes for a pipeline whose scheduler is the seam.

    `texts` are the texts besides the prompt that a prompt's metadata may name.
    """

    def __init__(
        self, pipeline: Any, model: DiffusersModel, family: Family, arguments: Mapping[str, Any]
    ) -> None:
        self.pipeline, self.model, self.arguments = pipeline, model, arguments
        self._steps = family.steps
        self._one_row = family.one_row
        self.texts = (*family.lists, *(name for name in (NEGATIVE,) if name in arguments))
        self.cache: EmbeddingCache | None = None
        self._call = unwrap(type(pipeline).__call__)
        self._encoded: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()
        self._images: dict[str | None, Any] = {}
        """Condition images by path, in the order of their numbers."""
        self._image_latents: OrderedDict[Hashable, Any] = OrderedDict()
        """What the pipeline's VAE made of them."""
        self._released = False
        """Whether the text encoders were given back."""
        self._slots = self._slots_of_answers(family)
        if model.embedding_cache is not None:
            self._encoders = digest_of_tensors(self.rows([Prompt("a")]))
            self.cache = EmbeddingCache(Path(model.embedding_cache))

    def rows(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Columns with one row a prompt, on the CPU; each prompt is encoded alone and once."""
        rows = [self._row(prompt) for prompt in prompts]
        can_return = self.cache is not None or not self._released
        while len(self._encoded) > REMEMBERED_PROMPTS and can_return:
            self._encoded.popitem(last=False)
        return conditions.stack(rows)

    def release(self, prompts: Sequence[Prompt]) -> int:
        """Encode these prompts and give the memory of the text encoders back, how many bytes; others raise
        from now on.
        """
        for prompt in prompts:
            self._row(prompt)
        self._released, released = True, 0
        others = self.pipeline.encoders if isinstance(self.pipeline, Modular) else ()
        for name, component in list(self.pipeline.components.items()):
            encodes = name.startswith(("text_encoder", "tokenizer")) or name in others
            if encodes and component is not None:
                if isinstance(component, nn.Module):
                    released += sum(t.numel() * t.element_size() for t in component.state_dict().values())
                self.pipeline.register_modules(**{name: None})
        if torch.device(self.model.device).type == "cuda":
            torch.cuda.empty_cache()
        return released

    def read_from_disk(self) -> Metrics:
        """How many prompts the cache on disk gave, and how many of its files were damaged."""
        if self.cache is None:
            return {}
        return {"read": float(self.cache.read), "damaged": float(self.cache.damaged)}

    @contextmanager
    def replayed(self, rows: Mapping[str, Tensor], draws: bool) -> Iterator[dict[str, Any]]:
        """Inside, the pipeline encodes nothing: it is answered what it was once answered for these rows.

        Yields the arguments of a call that belong to them. `draws` says whether the pipeline draws its own
        noise, which some make of the condition image: they then encode more of it than from a given state.
        """
        named = {name: t for name, t in rows.items() if name not in (IMAGE, SIZE)}
        answers = self._joined(conditions.trim(named))
        size = len(next(iter(rows.values())))
        # New lists: Z-Image writes into its own.
        given: dict[str, Any] = {name: self.as_given([""] * size) for name in ("prompt", *self.texts)}
        number = ALL if any(map(is_picture, self.arguments.values())) else None
        if IMAGE in rows:
            number = int(rows[IMAGE][0])
            given[IMAGE] = list(self._images.values())[number]
        self.pipeline.encode_prompt = lambda *args, **options: next(answers)
        try:
            with self._images_encoded_once(number, draws):
                yield given
        finally:
            del self.pipeline.encode_prompt

    def as_given(self, texts: list[str]) -> list[str] | str:
        """Texts as a call takes them: Wan VACE takes one sample, and no list of one."""
        return texts[0] if self._one_row else texts

    def _joined(self, rows: dict[str, Tensor]) -> Iterator[Any]:
        return (conditions.join(slot, rows) for slot in self._slots)

    @contextmanager
    def _images_encoded_once(self, number: int | None, draws: bool) -> Iterator[None]:
        """Inside, the VAE answers what it once answered for this condition image."""
        vae: Any = getattr(self.pipeline, "vae", None)
        if number is None or not callable(getattr(vae, "encode", None)):
            yield
            return
        original, calls = vae.encode, count()

        def remembered(image: Tensor, *args: Any, **options: Any) -> Any:
            # What is encoded is told by the image, its place in the call, and the size it was brought to.
            key = (number, draws, next(calls), image.shape, image.dtype)
            if key not in self._image_latents:
                with torch.no_grad():
                    self._image_latents[key] = original(image, *args, **options)
                while len(self._image_latents) > REMEMBERED_IMAGES:
                    self._image_latents.popitem(last=False)
            return self._image_latents[key]

        vae.encode = remembered
        try:
            yield
        finally:
            del vae.encode

    def _row(self, prompt: Prompt) -> dict[str, Tensor]:
        image = prompt.metadata.get("image")
        if NEGATIVE in prompt.metadata and NEGATIVE not in self.texts:
            raise UserError(
                f"prompt '{prompt.text}' has a negative_prompt, and the pipeline is called without one; give "
                "model.call.negative_prompt='' for prompts that have none, or take the column out"
            )
        key = (prompt.text, image, *(prompt.metadata.get(name) for name in self.texts))
        if key not in self._encoded:
            cached = "" if self.cache is None else self._key_on_disk(prompt)
            named = None if self.cache is None else self.cache.get(cached)
            if named is None:
                named = self._encode(prompt)
                if self.cache is not None:
                    self.cache.put(cached, named)
            if self._image_of(prompt) is not None:
                named[IMAGE] = torch.tensor(list(self._images).index(image))
            self._encoded[key] = named
        return self._encoded[key]

    def _encode(self, prompt: Prompt) -> dict[str, Tensor]:
        if self._released:
            raise UserError(
                f"prompt '{prompt.text}': the text encoders were released before it was encoded; release "
                "them with it among the prompts, or keep them with model.release_encoders=false"
            )
        named: dict[str, Tensor] = {}
        for slot, answer in zip(self._slots, self.answers([prompt]), strict=True):
            named |= conditions.cut(slot, answer)
        return {name: tensor.cpu() for name, tensor in named.items()}

    def _key_on_disk(self, prompt: Prompt) -> str:
        return key_of(
            pipeline=name_of(self.pipeline),
            precision=self.model.precision,
            call=self.arguments,
            encoders=self._encoders,
            prompt=prompt.text,
            texts={name: prompt.metadata.get(name) for name in self.texts},
            image=self._image_of(prompt),
        )

    def _image_of(self, prompt: Prompt) -> Any:
        """The condition image of the prompt, or that of all; None without one."""
        path = prompt.metadata.get("image")
        if path is None and IMAGE not in self.arguments:
            return None
        if path not in self._images:
            self._images[path] = self.arguments[IMAGE] if path is None else read_image(path)
        return self._images[path]

    @torch.no_grad()
    def answers(self, prompts: Sequence[Prompt]) -> list[Any]:
        """What each call of `encode_prompt` returns on the way to the network."""
        given: dict[str, Any] = {}
        if (image := self._image_of(prompts[0])) is not None:
            given[IMAGE] = image
        for name in self.texts:
            texts = [p.metadata.get(name, self.arguments.get(name, "")) for p in prompts]
            given[name] = self.as_given(texts)
        answers: list[Any] = []
        original = self.pipeline.encode_prompt

        def listen(*args: Any, **options: Any) -> Any:
            answers.append(original(*args, **options))
            return answers[-1]

        self.pipeline.scheduler.hold(None)
        self.pipeline.scheduler.stop_before_network = True
        self.pipeline.encode_prompt = listen
        try:
            with suppress(Stopped):
                self._call(
                    self.pipeline,
                    prompt=self.as_given([prompt.text for prompt in prompts]),
                    num_inference_steps=self._steps,
                    generator=torch.Generator(self.model.device).manual_seed(0),
                    **{**self.arguments, **given},
                )
        finally:
            del self.pipeline.encode_prompt
        return answers

    def _slots_of_answers(self, family: Family) -> list[conditions.Slot]:
        """How its answers are laid out."""
        one = self.answers([Prompt("a")])
        if family.one_prompt:
            two = [conditions.doubled(answer) for answer in one]
        else:
            two = one if family.one_row else self.answers([Prompt("a")] * 2)
        if not one:
            raise UserError(
                f"model: {name_of(self.pipeline)} encodes its prompts after it asks for noise "
                "levels, or not in `encode_prompt`; such pipelines cannot be trained yet"
            )
        return [conditions.describe(a, b, str(i)) for i, (a, b) in enumerate(zip(one, two, strict=True))]


def is_key(name: str) -> bool:
    """A column that says which rows can share a call."""
    return name.endswith(conditions.LENGTH) or name == IMAGE
