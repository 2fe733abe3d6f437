"""A stock diffusers pipeline as a policy: one call of it is one guided velocity.

Latents are what the pipeline's scheduler sees (packed into tokens, if the pipeline packs); two parts, such as
video and sound, are flattened into one row. Shapes: B rows, P prompts, ... the policy's latent axes.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from inspect import unwrap
from itertools import count
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from thalweg.core.errors import UserError
from thalweg.core.values import SIZE, Condition, Media, Metrics, Prompt, Size
from thalweg.models.contract import Passes
from thalweg.models.diffusers import conditions
from thalweg.models.diffusers.adapters import add_adapters
from thalweg.models.diffusers.embedding_cache import EmbeddingCache, digest_of_tensors, key_of
from thalweg.models.diffusers.families import Family, family_of
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.modular import name_of
from thalweg.models.diffusers.pipelines import arguments, arguments_of_size, networks, read_image
from thalweg.models.diffusers.readings import VELOCITIES, FlowReading, Reading, discrete
from thalweg.models.diffusers.seam import Seam, Stopped
from thalweg.models.sizes import OWN_SIZE, place_of, size_asked
from thalweg.models.weights import NamedWeights

IMAGE = "image"
"""The column with the number of a row's condition image; rows of one call share it."""
NEGATIVE = "negative_prompt"
REMEMBERED_PROMPTS = 1024
"""Encoded prompts that stay in memory, of the CPU, while they could be encoded or read again."""
REMEMBERED_IMAGES = 64
"""Condition images whose latents stay on the device."""


class DiffusersPolicy:
    """Fulfils `models.contract.Policy`."""

    def __init__(self, pipeline: Any, model: DiffusersModel, family: Family | None = None) -> None:
        self.pipeline, self.model, self.family = pipeline, model, family or family_of(pipeline)
        self.device = torch.device(model.device)
        self.passes = Passes()
        self.arguments = arguments(pipeline, model)
        self.texts = (*self.family.lists, *(name for name in (NEGATIVE,) if name in self.arguments))
        """Texts besides the prompt that a prompt's metadata may name."""
        self.networks = networks(pipeline)
        self._call_pipeline = unwrap(type(pipeline).__call__)
        self._encoded: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()
        self._images: dict[str | None, Any] = {}
        """Condition images by path, in the order of their numbers."""
        self._image_latents: OrderedDict[Hashable, Any] = OrderedDict()
        """What the pipeline's VAE made of them."""
        self._slots: list[conditions.Slot] = []
        self._sized: dict[Size, DiffusersPolicy] = {OWN_SIZE: self}
        """This policy at the sizes that were asked for; they share everything but the shape of latents."""
        self._cache: EmbeddingCache | None = None
        self._released = False
        """Whether the text encoders were given back."""
        self._replace_scheduler()
        with torch.no_grad():
            self._look_at_the_pipeline()
        if model.embedding_cache is not None:
            self._cache = EmbeddingCache(Path(model.embedding_cache))
            self._encoders = digest_of_tensors(self._some_condition.tensors)
        parameters = add_adapters(self.networks, model.lora)
        self.weights = NamedWeights(parameters)
        if model.gradient_checkpointing:
            self._checkpoint_gradients()

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """One row a prompt; each is encoded alone and once.

        A prompt's metadata may hold the path of an `image`, a `negative_prompt` where the model's call has
        one, what else its family asks for, and the size of its samples.
        """
        sizes = torch.tensor(self.sizes_of(prompts), dtype=torch.int64).view(-1, 4)
        rows = [self._encode_one(prompt) for prompt in prompts]
        can_return = self._cache is not None or not self._released
        while len(self._encoded) > REMEMBERED_PROMPTS and can_return:
            self._encoded.popitem(last=False)
        table = conditions.stack(rows)
        on_device = {n: t if _is_key(n) else t.to(self.device) for n, t in table.items()}
        return Condition({**on_device, SIZE: sizes})

    def sizes_of(self, prompts: Sequence[Prompt]) -> list[Size]:
        """What each prompt asks for; raises UserError, with its place, where the pipeline cannot make it."""
        sizes = [size_asked(prompt) for prompt in prompts]
        for prompt, size in zip(prompts, sizes, strict=True):
            if size not in self._sized:
                try:
                    self.at(size)
                except UserError as error:
                    raise UserError(f"{place_of(prompt)}: {error}") from None
        return sizes

    @torch.no_grad()
    def at(self, size: Size) -> "DiffusersPolicy":
        """This policy for samples of a size."""
        if size not in self._sized:
            sized = copy(self)
            sized.arguments = self._sized[OWN_SIZE].arguments | arguments_of_size(self.pipeline, size)
            with self._refusals_in_a_line():
                sized._look_at_the_latents()
            self._sized[size] = sized
        return self._sized[size]

    def encode_ahead(self, prompts: Sequence[Prompt]) -> Metrics:
        """Encode all prompts of a run and release the text encoders, where the model's settings say so."""
        if not self.model.release_encoders:
            return {}
        released = self.release_encoders(prompts)
        counts = (
            {}
            if self._cache is None
            else {"read": float(self._cache.read), "damaged": float(self._cache.damaged)}
        )
        return {
            "prompts": float(len(dict.fromkeys(prompt.text for prompt in prompts))),
            "memory/released_mb": released / 2**20,
            **counts,
        }

    def release_encoders(self, prompts: Sequence[Prompt] = ()) -> int:
        """Encode these prompts and give the memory of the text encoders back, how many bytes; others raise
        from now on.
        """
        for prompt in prompts:
            self._encode_one(prompt)
        self._released, released = True, 0
        for name, component in list(self.pipeline.components.items()):
            if name.startswith(("text_encoder", "tokenizer")) and component is not None:
                if isinstance(component, nn.Module):
                    released += sum(t.numel() * t.element_size() for t in component.state_dict().values())
                self.pipeline.register_modules(**{name: None})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return released

    def velocity(
        self, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B ..."]:
        """dx/dsigma, guided, in float32: one call of the pipeline for rows that can share one."""
        self.passes.evaluations += len(x) * self.passes_per_velocity
        groups = self._rows_together(sigma, condition)
        if len(groups) == 1:
            return self.weights.watch(self._velocity(x, sigma, condition))
        parts = [
            self._velocity(x[rows.to(x.device)], sigma[rows.to(sigma.device)], condition.index(rows))
            for rows in groups
        ]
        return self.weights.watch(torch.cat(parts)[torch.cat(groups).argsort().to(x.device)])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"] | Media:
        """Images, or frames and sound, by the pipeline's own decoder; on the CPU."""
        size = 1 if self.family.decodes_alone or self.family.one_row else self.model.decode_batch
        # Of no latents, the shape: a process may have fewer images to make than there are processes.
        given = latents if len(latents) else latents.new_zeros(1, *self.latent_shape)
        decoded = [self._decode(some) for some in given.split(size)]
        return _as_media([torch.cat(parts)[: len(latents)] for parts in zip(*decoded, strict=True)])

    def _velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        steps = self._call(x, sigma, condition.tensors)
        return self.pack([velocity for _, velocity in steps]).float()

    def _decode(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Run the call without a noise level: from the latents it was given straight to its decoder."""
        rows = self._some_condition.repeat(len(latents))
        self.pipeline.scheduler.hold(None)
        outputs = self._stock(latents.to(self.device), rows.tensors, output_type="pt")
        # Beside images, Stable Diffusion 1.5 returns what its safety checker says.
        return tuple(output.detach().float().cpu() for output in outputs if isinstance(output, Tensor))

    def _call(
        self, x: Tensor | None, sigma: Tensor, rows: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """(state, velocity) of each part, from one step of the pipeline at x, or at noise of its own."""
        seam: Seam = self.pipeline.scheduler
        seam.hold(sigma, 1 if x is None else self._unpack(x)[0].ndim)
        self._stock(x, rows, output_type="latent")
        return seam.steps

    def _stock(self, x: Tensor | None, rows: Mapping[str, Tensor], output_type: str) -> Any:
        """The pipeline's own call, undecorated: gradients flow where they are enabled."""
        size, image = len(next(iter(rows.values()))), rows.get(IMAGE)
        given = {} if x is None else self.given(x)
        if image is not None:
            given[IMAGE] = list(self._images.values())[int(image[0])]
        number = None if image is None else int(image[0])
        with self._replayed(rows), self._images_encoded_once(number):
            return self._call_pipeline(
                self.pipeline,
                num_inference_steps=1,
                generator=torch.Generator(self.device).manual_seed(0),
                output_type=output_type,
                return_dict=False,
                # New lists: Z-Image writes into its own.
                **self.arguments | given | {name: [""] * size for name in ("prompt", *self.texts)},
            )

    def given(self, x: Tensor) -> dict[str, Tensor]:
        """The arguments that put the pipeline's latents at x."""
        given = dict(zip(self.family.latents, self._unpack(x), strict=True))
        if self.family.to_argument is None:
            return given
        return {n: self.family.to_argument(p, self.pipeline, self.arguments) for n, p in given.items()}

    @contextmanager
    def _replayed(self, rows: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the pipeline's `encode_prompt` answers what it once answered for these rows."""
        trimmed = conditions.trim({name: t for name, t in rows.items() if name not in (IMAGE, SIZE)})
        answers = (conditions.join(slot, trimmed) for slot in self._slots)
        self.pipeline.encode_prompt = lambda *args, **options: next(answers)
        try:
            yield
        finally:
            del self.pipeline.encode_prompt

    @contextmanager
    def _images_encoded_once(self, number: int | None) -> Iterator[None]:
        """Inside, the VAE answers what it once answered for this condition image."""
        vae: Any = getattr(self.pipeline, "vae", None)
        if number is None or not callable(getattr(vae, "encode", None)):
            yield
            return
        original, calls = vae.encode, count()

        def remembered(image: Tensor, *args: Any, **options: Any) -> Any:
            # What is encoded is told by the image, its place in the call, and the size it was brought to.
            key = (number, next(calls), image.shape, image.dtype)
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

    def _encode_one(self, prompt: Prompt) -> dict[str, Tensor]:
        image = prompt.metadata.get("image")
        if NEGATIVE in prompt.metadata and NEGATIVE not in self.texts:
            raise UserError(
                f"prompt '{prompt.text}' has a negative_prompt, and the pipeline is called without one; give "
                "model.call.negative_prompt='' for prompts that have none, or take the column out"
            )
        key = (prompt.text, image, *(prompt.metadata.get(name) for name in self.texts))
        if key not in self._encoded:
            cached = "" if self._cache is None else self._key_on_disk(prompt)
            named = None if self._cache is None else self._cache.get(cached)
            if named is None:
                named = self._encode_anew(prompt)
                if self._cache is not None:
                    self._cache.put(cached, named)
            if self._image_of(prompt) is not None:
                named[IMAGE] = torch.tensor(list(self._images).index(image))
            self._encoded[key] = named
        return self._encoded[key]

    def _encode_anew(self, prompt: Prompt) -> dict[str, Tensor]:
        if self._released:
            raise UserError(
                f"prompt '{prompt.text}': the text encoders were released before it was encoded; name it "
                "to `release_encoders`"
            )
        named: dict[str, Tensor] = {}
        for slot, answer in zip(self._slots, self._answers([prompt]), strict=True):
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
    def _answers(self, prompts: Sequence[Prompt]) -> list[Any]:
        """What each call of `encode_prompt` returns on the way to the network."""
        given: dict[str, Any] = {}
        if (image := self._image_of(prompts[0])) is not None:
            given[IMAGE] = image
        for name in self.texts:
            given[name] = [p.metadata.get(name, self.arguments.get(name, "")) for p in prompts]
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
                self._call_pipeline(
                    self.pipeline,
                    prompt=[prompt.text for prompt in prompts],
                    num_inference_steps=1,
                    generator=torch.Generator(self.device).manual_seed(0),
                    **self.arguments | given,
                )
        finally:
            del self.pipeline.encode_prompt
        return answers

    def _replace_scheduler(self) -> None:
        scheduler = getattr(self.pipeline, "scheduler", None)
        if scheduler is None or "num_train_timesteps" not in scheduler.config:
            raise UserError(
                f"model: the scheduler of {name_of(self.pipeline)} cannot be replaced; only pipelines "
                "with one scheduler of timesteps can be trained"
            )
        self.stock_scheduler = scheduler
        seam: Any = Seam.from_config(scheduler.config)
        seam.reading = _reading_of(self.pipeline)
        self.pipeline.scheduler = seam

    def _look_at_the_pipeline(self) -> None:
        """Learn the slots of conditions, the shape and dtype of states and the passes of a velocity."""
        with self._refusals_in_a_line():
            one = self._answers([Prompt("a")])
            two = one if self.family.one_row else self._answers([Prompt("a")] * 2)
            if not one:
                raise UserError(
                    f"model: {name_of(self.pipeline)} encodes its prompts after it asks for noise "
                    "levels, or not in `encode_prompt`; such pipelines cannot be trained yet"
                )
            self._slots = [
                conditions.describe(a, b, str(i)) for i, (a, b) in enumerate(zip(one, two, strict=True))
            ]
            self._some_condition = self.encode([Prompt("a")])
            self._look_at_the_latents()

    @contextmanager
    def _refusals_in_a_line(self) -> Iterator[None]:
        """Inside, what the pipeline refuses in its own words is the user's to mend."""
        try:
            yield
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"model: {name_of(self.pipeline)} refuses the settings: {error}") from error

    def _look_at_the_latents(self) -> None:
        """Learn the shape and dtype of states at the policy's size, and the passes of a velocity."""
        with counted_rows(self.networks) as counted:
            stock = self._call(None, torch.ones(1), self._some_condition.tensors)
        self.passes_per_velocity = sum(counted)
        self._parts = [tuple(state.shape[1:]) for state, _ in stock]
        if len(self._parts) != len(self.family.latents):
            raise UserError(
                f"model: {name_of(self.pipeline)} has {len(self._parts)} latents and "
                f"{len(self.family.latents)} are known; it needs an entry in models/diffusers/families.py"
            )
        single = len(self._parts) == 1
        self.latent_shape: tuple[int, ...] = (
            self._parts[0] if single else (sum(math.prod(part) for part in self._parts),)
        )
        x = torch.linspace(-1, 1, math.prod(self.latent_shape), device=self.device).view(
            1, *self.latent_shape
        )
        seen = self._call(x, torch.ones(1), self._some_condition.tensors)
        self.latent_dtype = seen[0][0].dtype
        if not torch.equal(self.pack([state for state, _ in seen]).float(), x.to(self.latent_dtype).float()):
            raise UserError(
                f"model: {name_of(self.pipeline)} changes the latents it is given; it needs an entry "
                "in models/diffusers/families.py"
            )

    def _checkpoint_gradients(self) -> None:
        for name, network in self.networks.items():
            if not getattr(network, "_supports_gradient_checkpointing", False):
                raise UserError(
                    f"model.gradient_checkpointing: {type(network).__name__} ({name}) does not support it; "
                    "leave it out"
                )
            network.enable_gradient_checkpointing()  # type: ignore[operator]

    def _rows_together(self, sigma: Tensor, condition: Condition) -> list[Int64[Tensor, " n"]]:
        """Rows that one call can take: of equal lengths, and at one level where the pipeline needs it."""
        if self.family.one_row:
            return list(torch.arange(len(sigma)).split(1))
        keys = [t for n, t in condition.tensors.items() if _is_key(n)]  # all of one size
        columns = [*keys, *([] if self.family.rows_may_differ else [sigma.cpu()])]
        groups: dict[tuple[float, ...], list[int]] = {}
        for row, key in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            groups.setdefault(key, []).append(row)
        return [torch.tensor(rows) for rows in groups.values()] or [torch.arange(len(sigma))]

    @property
    def parts(self) -> tuple[int, ...]:
        """Latent elements of each of the pipeline's latents."""
        return tuple(math.prod(part) for part in self._parts)

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """The policy's latents from the pipeline's."""
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)

    def _unpack(self, x: Tensor) -> list[Tensor]:
        if len(self._parts) == 1:
            return [x]
        sizes = [math.prod(part) for part in self._parts]
        return [flat.unflatten(1, part) for flat, part in zip(x.split(sizes, 1), self._parts, strict=True)]


def _reading_of(pipeline: Any) -> Reading:
    """How the network is asked, by the scheduler that was saved with it."""
    scheduler, config = pipeline.scheduler, pipeline.scheduler.config
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction == "flow_prediction" or config.get("use_flow_sigmas", False):
        return FlowReading(config["num_train_timesteps"])
    table = getattr(scheduler, "alphas_cumprod", None)
    if prediction not in VELOCITIES or table is None or config.get("timestep_type") == "continuous":
        raise UserError(
            f"model: {name_of(pipeline)} with {type(scheduler).__name__} (prediction_type "
            f"'{prediction}') is neither a flow nor has it DDPM's table of timesteps; it cannot be trained"
        )
    return discrete(table, prediction)


@contextmanager
def counted_rows(networks: Mapping[str, nn.Module]) -> Iterator[list[int]]:
    """Inside, how many rows each pass of the networks has."""
    counted: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        counted.append(len(next(iter([*args, *options.values()]))))

    hooks = [n.register_forward_pre_hook(count, with_kwargs=True) for n in networks.values()]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _is_key(name: str) -> bool:
    """A column that says which rows can share a call."""
    return name.endswith(conditions.LENGTH) or name == IMAGE


def _as_media(outputs: Sequence[Tensor]) -> Tensor | Media:
    """A pipeline returns images (B, 3, H, W), frames (B, F, 3, H, W), or waves (B, channels, T)."""
    by_axes = {output.ndim: output for output in outputs}
    if set(by_axes) == {4}:
        return by_axes[4].clamp(0, 1)
    audio = by_axes.get(3, by_axes[2][:, None] if 2 in by_axes else None)
    frames = by_axes.get(5)
    return Media(None if frames is None else frames.clamp(0, 1), audio)
