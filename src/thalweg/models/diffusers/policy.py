"""A stock diffusers pipeline as a policy: one call of it is one guided velocity.

Latents are what the pipeline's scheduler sees (packed into tokens, if the pipeline packs); two parts, such as
video and sound, are flattened into one row. Shapes: B rows, P prompts, ... the policy's latent axes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from inspect import unwrap
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from thalweg.core.errors import UserError
from thalweg.core.names import nearest
from thalweg.core.values import SIZE, Condition, Media, Metrics, Prompt, Size
from thalweg.models.contract import Passes
from thalweg.models.diffusers.adapters import add_adapters
from thalweg.models.diffusers.attention import noted
from thalweg.models.diffusers.encoder import Encoder, is_key
from thalweg.models.diffusers.families import Family, family_of
from thalweg.models.diffusers.gradient_scales import scale_gradients
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.modular import name_of
from thalweg.models.diffusers.pictures import is_picture, negative
from thalweg.models.diffusers.pipelines import arguments, arguments_of_size, networks
from thalweg.models.diffusers.readings import VELOCITIES, FlowReading, Reading, discrete
from thalweg.models.diffusers.refusals import in_a_line
from thalweg.models.diffusers.seam import Seam
from thalweg.models.diffusers.taps import tapped
from thalweg.models.sizes import OWN_SIZE, place_of, size_asked
from thalweg.models.weights import NamedWeights


class DiffusersPolicy:
    """Fulfils `models.contract.Policy`."""

    def __init__(self, pipeline: Any, model: DiffusersModel, family: Family | None = None) -> None:
        self.pipeline, self.model, self.family = pipeline, model, family or family_of(pipeline)
        self.device = torch.device(model.device)
        self.passes = Passes()
        self.arguments = arguments(pipeline, model)
        self.networks = networks(pipeline)
        self._call_pipeline = unwrap(type(pipeline).__call__)
        self._sized: dict[Size, DiffusersPolicy] = {OWN_SIZE: self}
        """This policy at the sizes that were asked for; they share everything but the shape of latents."""
        self._replace_scheduler()
        with torch.no_grad(), in_a_line(pipeline):
            self.encoder = Encoder(pipeline, model, self.family, self.arguments)
            self._some_condition = self.encode([Prompt("a")])
            self._look_at_the_latents()
            self._require_pictures_to_be_seen()
        parameters = add_adapters(self.networks, model.lora)
        self.weights = NamedWeights(parameters)
        self.scaled_inputs = scale_gradients(self.networks, model.gradient_scales)
        if model.gradient_checkpointing:
            self._checkpoint_gradients()

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """One row a prompt; each is encoded alone and once.

        A prompt's metadata may hold the path of an `image`, a `negative_prompt` where the model's call has
        one, what else its family asks for, and the size of its samples.
        """
        sizes = torch.tensor(self.sizes_of(prompts), dtype=torch.int64).view(-1, 4)
        columns = self.encoder.rows(prompts)
        on_device = {n: t if is_key(n) else t.to(self.device) for n, t in columns.items()}
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
            with in_a_line(self.pipeline):
                sized._look_at_the_latents()
            self._sized[size] = sized
        return self._sized[size]

    def encode_ahead(self, prompts: Sequence[Prompt]) -> Metrics:
        """Encode all prompts of a run and release the text encoders, where the model's settings say so."""
        if not self.model.release_encoders:
            return {}
        released = self.encoder.release(prompts)
        return {
            "prompts": float(len(dict.fromkeys(prompt.text for prompt in prompts))),
            "memory/released_mb": released / 2**20,
            **self.encoder.read_from_disk(),
        }

    def velocity(
        self, x: Float[Tensor, "B ..."], sigma: Float[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B ..."]:
        """dx/dsigma, guided, in float32: one call of the pipeline for rows that can share one."""
        return self.weights.watch(self._in_calls(self._velocity, x, sigma, condition))

    def require_attention(self, modules: str, blocks: tuple[int, int] | None) -> None:
        """Raises UserError where the network has no such attention, or it is not known what it looks at."""
        known, place = self.family.attended, "rollout.attention"
        if modules not in known:
            none = "; leave rollout.attention out, or add it in models/diffusers/families.py"
            raise UserError(
                f"{place}.modules='{modules}': what attention of that name looks at is not known of "
                f"{name_of(self.pipeline)}{nearest(modules, known) if known else none}"
            )
        tapped(self.networks, modules, blocks, place)

    @torch.no_grad()
    def attended(
        self,
        x: Float[Tensor, "B ..."],
        sigma: Float[Tensor, " B"],
        condition: Condition,
        modules: str,
        blocks: tuple[int, int] | None,
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """The velocity without gradient, and the attention that each latent element is paid on the way."""
        seen = tapped(self.networks, modules, blocks, "rollout.attention")

        def velocity_and_attention(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            with noted(self.networks.values(), seen.values(), len(x)) as paid:
                velocity = self._velocity(x, sigma, condition)
            if len(paid) != len(seen):
                raise UserError(
                    f"rollout.attention.modules='{modules}': they do not use torch's own attention; leave "
                    "the attention backend of the pipeline as it is saved, or rollout.attention out"
                )
            of_tokens = torch.stack(paid).mean(0)
            return torch.stack([velocity, self._at_tokens(of_tokens, self.family.attended[modules])], 1)

        both = self._in_calls(velocity_and_attention, x, sigma, condition)
        return both[:, 0], both[:, 1]

    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"] | Media:
        """Images, or frames and sound, by the pipeline's own decoder; on the CPU. Latents that ask for a
        gradient get one; with `gradient_checkpointing` the decoder runs again for it.
        """
        size = 1 if self.family.decodes_alone or self.family.one_row else self.model.decode_batch
        # Of no latents, the shape: a process may have fewer images to make than there are processes.
        given = latents if len(latents) else latents.new_zeros(1, *self.latent_shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and given.requires_grad):
            decoded = [self._decode_again(some) for some in given.split(size)]
        return _as_media([torch.cat(parts)[: len(latents)] for parts in zip(*decoded, strict=True)])

    def _in_calls(
        self,
        call: Callable[[Tensor, Tensor, Condition], Tensor],
        x: Tensor,
        sigma: Tensor,
        condition: Condition,
    ) -> Tensor:
        """What `call` makes of the rows, one call for those that can share one."""
        self.passes.evaluations += len(x) * self.passes_per_velocity
        groups = self._rows_together(sigma, condition)
        if len(groups) == 1:
            return call(x, sigma, condition)
        parts = [
            call(x[rows.to(x.device)], sigma[rows.to(sigma.device)], condition.index(rows)) for rows in groups
        ]
        return torch.cat(parts)[torch.cat(groups).argsort().to(x.device)]

    def _velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        steps = self._call(x, sigma, condition.tensors)
        return self.pack([velocity for _, velocity in steps]).float()

    def _decode_again(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Decode, a second time for the gradient where activations are not kept."""
        if not (self.model.gradient_checkpointing and torch.is_grad_enabled()):
            return self._decode(latents)
        found = checkpoint(self._decode, latents, use_reentrant=False)
        assert isinstance(found, tuple)
        return found

    def _decode(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Run the call without a noise level: from the latents it was given straight to its decoder."""
        rows = self._some_condition.repeat(len(latents))
        self.pipeline.scheduler.hold(None)
        outputs = self._stock(latents.to(self.device), rows.tensors, output_type="pt")
        # Beside images, Stable Diffusion 1.5 returns what its safety checker says.
        return tuple(output.float().cpu() for output in outputs if isinstance(output, Tensor))

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
        with self.encoder.replayed(rows, draws=x is None) as of_rows:
            given = {} if x is None else self.given(x, self.arguments | of_rows)
            return self._call_pipeline(
                self.pipeline,
                num_inference_steps=self.family.steps,
                generator=torch.Generator(self.device).manual_seed(0),
                output_type=output_type,
                return_dict=False,
                **self.arguments | given | of_rows,
            )

    def given(self, x: Tensor, call: Mapping[str, Any]) -> dict[str, Tensor]:
        """The arguments that put the pipeline's latents at x, in a call with these others."""
        given = dict(zip(self.family.latents, self._unpack(x), strict=True))
        if self.family.to_argument is None:
            return given
        return {n: self.family.to_argument(p, self.pipeline, call) for n, p in given.items()}

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

    def _require_pictures_to_be_seen(self) -> None:
        """Refuse a picture that never reaches the network: such a pipeline only starts from it."""
        pictures = {name: value for name, value in self.arguments.items() if is_picture(value)}
        if not pictures:
            return
        other = copy(self)
        other.arguments = self.arguments | {name: negative(value) for name, value in pictures.items()}
        uncached = self.model.model_copy(update={"embedding_cache": None})
        other.encoder = Encoder(self.pipeline, uncached, self.family, other.arguments)
        if all(map(torch.equal, self._fed(), other._fed())):
            name = next(iter(pictures))
            raise UserError(
                f"model.call.{name}: {name_of(self.pipeline)} does not show its network that; it "
                "starts from it, and a rollout starts from noise; save the pipeline as the class that "
                "makes samples from text alone"
            )

    def _fed(self) -> list[Tensor]:
        """Every tensor that the networks are given on the way to a velocity."""
        condition, given = self.encode([Prompt("a")]), []

        def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            given.extend(leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor))

        x = torch.zeros(1, *self.latent_shape, device=self.device)
        with hooked(self.networks, note):
            self._call(x, torch.ones(1), condition.tensors)
        return given

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
        keys = [t for n, t in condition.tensors.items() if is_key(n)]  # all of one size
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

    def _at_tokens(self, of_tokens: Float[Tensor, "B L"], part: int) -> Float[Tensor, "B ..."]:
        """A number for each token of a part at all its elements; NaN in the other parts."""
        rows = len(of_tokens)
        numbers = [of_tokens.new_full((rows, *shape), torch.nan) for shape in self._parts]
        numbers[part][:] = of_tokens.view(rows, -1, *[1] * (numbers[part].ndim - 2))
        return self.pack(numbers)

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
        if (config.get("sigma_max") or 1) > 1:
            raise UserError(
                f"model: the levels of {name_of(pipeline)} go up to {config['sigma_max']}, where states are "
                "data plus noise and not a mixture of both; such pipelines cannot be trained yet"
            )
        return FlowReading(config["num_train_timesteps"], bool(config.get("invert_sigmas", False)))
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

    with hooked(networks, count):
        yield counted


@contextmanager
def hooked(networks: Mapping[str, nn.Module], look: Callable[..., None]) -> Iterator[None]:
    """Inside, every pass of the networks is looked at before it is made."""
    hooks = [n.register_forward_pre_hook(look, with_kwargs=True) for n in networks.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_media(outputs: Sequence[Tensor]) -> Tensor | Media:
    """A pipeline returns images (B, 3, H, W), frames (B, F, 3, H, W), or waves (B, channels, T)."""
    by_axes = {output.ndim: output for output in outputs}
    if set(by_axes) == {4}:
        return over_white(by_axes[4].clamp(0, 1))
    audio = by_axes.get(3, by_axes[2][:, None] if 2 in by_axes else None)
    frames = by_axes.get(5)
    return Media(None if frames is None else frames.clamp(0, 1), audio)


def over_white(images: Tensor) -> Tensor:
    """Images without their alpha channel, if they have one: rewards see no transparency. Over white, as
    Qwen-Image 2.1 shows its own to its text encoder.
    """
    if images.ndim != 4 or images.shape[1] != 4:
        return images
    alpha = images[:, 3:]
    return alpha * images[:, :3] + (1 - alpha)
