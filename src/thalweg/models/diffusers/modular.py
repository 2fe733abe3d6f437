"""A modular pipeline with the face of a classic one: some families of diffusers exist in no other form.

A modular pipeline is a row of blocks that hand a state on. They are run here on a state directly, in three
parts: the text encoder, with what rewrites prompts before it, is `encode_prompt`, the last block decodes, and
what lies between asks the scheduler for noise levels, calls the network and hands its output to `step`, where
the seam stands. The blocks are decorated with `no_grad`, which would end every gradient; ours are copies
without it.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
)

from thalweg.core.errors import UserError
from thalweg.models.diffusers.seam import Seam, Stopped

INDEX = "modular_model_index.json"
"""The file that tells a modular repository."""
ENCODER, DECODER = "text_encoder", "decode"
"""Blocks that every family calls alike."""
PER_STEP = "guidance_schedule"
"""The argument for a strength of guidance for each step, where there is one."""


class Modular:
    """Answers as a classic pipeline does; whatever is not here is the modular pipeline's."""

    def __init__(self, stock: ModularPipeline) -> None:
        self.stock = stock
        self.name = type(stock).__name__
        self.blocks: Any = deepcopy(stock.blocks)
        self._stock_blocks: Any = stock._blocks  # its `blocks` gives a copy
        names = list(self.blocks.sub_blocks)
        if reason := self._untrainable(names):
            raise UserError(f"model: {self.name} {reason}; such pipelines cannot be trained yet")
        self._encoding = names[: names.index(ENCODER) + 1]
        """The blocks up to the text encoder."""
        self._leave_out_what_is_not_there()
        # Worked out from all blocks at each look.
        self._inputs = self.blocks.inputs
        self._made = [param.name for param in self.blocks.outputs if param.name != "latents"]
        """What a call gives; FLUX.3 gives its latents beside the images."""
        for block in _all_blocks(self.blocks):
            plain = unwrap(type(block).__call__)
            is_loop = isinstance(block, LoopSequentialPipelineBlocks)
            plain = _where_levels_are_held(plain) if is_loop else plain
            block.__class__ = type(type(block).__name__, (type(block),), {"__call__": plain})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stock, name)

    def _untrainable(self, names: list[str]) -> str | None:
        """Why the seam has no place in the pipeline, if so."""
        schedulers = [name for name in self.stock.components if name.endswith("scheduler")]
        if ENCODER not in names or DECODER not in names:
            return f"has no '{ENCODER}' or '{DECODER}' block"
        if "scheduler" not in schedulers:
            return "has no scheduler"
        if len(schedulers) > 1:
            return f"has {len(schedulers)} schedulers, whose noise levels differ at each step"
        if all(param.name != "latents" for param in self.blocks.inputs):
            return "takes no latents, so no state can be given to its network"
        return None

    def _leave_out_what_is_not_there(self) -> None:
        """Prompts are not rewritten where the pipeline was saved without the model that would."""
        for name in self._encoding[:-1]:
            if self._lacking & {spec.name for spec in self.blocks.sub_blocks[name].expected_components}:
                self._encoding.remove(name)
                for blocks in (self.blocks, self._stock_blocks):
                    blocks.sub_blocks.pop(name)

    @property
    def _lacking(self) -> set[str]:
        return {name for name, component in self.stock.components.items() if component is None}

    def require_components(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a call for which the pipeline was saved with too little."""
        runs = self.blocks.get_execution_blocks(prompt="", **arguments)
        for name in [spec.name for spec in runs.expected_components if spec.name in self._lacking]:
            raise UserError(
                f"model: {self.name} was saved without its component '{name}', which a call with these "
                "settings needs; save the pipeline with it"
            )

    @property
    def encoders(self) -> set[str]:
        """Components that only the encoding of prompts needs."""
        needed: dict[bool, set[str]] = {True: set(), False: set()}
        for name, block in self.blocks.sub_blocks.items():
            needed[name in self._encoding] |= {spec.name for spec in block.expected_components}
        return needed[True] - needed[False]

    @property
    def scheduler(self) -> Any:
        """The component that the seam replaces."""
        return self.stock.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.stock.update_components(scheduler=scheduler)

    @property
    def parameters(self) -> list[str]:
        """What a call may be given."""
        own = [param.name for param in self._inputs if param.name is not None]
        return [*own, *(["guidance_scale"] if self._guided or PER_STEP in own else [])]

    @property
    def _guided(self) -> bool:
        """Whether the strength of guidance is a guider's."""
        return self.stock.components.get("guider") is not None

    def register_modules(self, **components: Any) -> None:
        """Put components in, or take them out."""
        self.stock.update_components(**components)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Of all loops, ours and the pipeline's own."""
        self.stock.set_progress_bar_config(**options)
        for block in (*_all_blocks(self.blocks), *_all_blocks(self._stock_blocks)):
            if isinstance(block, LoopSequentialPipelineBlocks):
                block.set_progress_bar_config(**options)

    def encode_prompt(self, state: PipelineState) -> dict[str, Any]:
        """What the text encoder writes into the state, after what rewrites the prompt."""
        for name in self._encoding:
            self.blocks.sub_blocks[name](self.stock, state)
        block = self.blocks.sub_blocks[ENCODER]
        return {param.name: state.get(param.name) for param in block.intermediate_outputs}

    def __call__(
        self,
        *,
        num_inference_steps: int,
        output_type: str = "pt",
        return_dict: bool = False,
        guidance_scale: float | None = None,
        **inputs: Any,
    ) -> tuple[Any, ...]:
        """A call of the pipeline: latents, or what its decoder makes of them."""
        inputs |= {"num_inference_steps": num_inference_steps, "output_type": output_type}
        inputs |= self._guidance(guidance_scale, num_inference_steps)
        inputs = _one_as_text(inputs)
        state = PipelineState()
        for param in self._inputs:
            if param.name is not None:
                state.set(param.name, inputs.get(param.name, param.default), param.kwargs_type)
        outputs = {
            param.name: param.kwargs_type for param in self.blocks.sub_blocks[ENCODER].intermediate_outputs
        }
        for name, value in self.encode_prompt(state).items():
            state.set(name, value, outputs[name])
        if isinstance(self.scheduler, Seam) and self.scheduler.stop_before_network:
            raise Stopped
        for name, block in self.blocks.sub_blocks.items():
            if name not in self._encoding and not (name == DECODER and output_type == "latent"):
                block(self.stock, state)
        return tuple(state.get(name) for name in (["latents"] if output_type == "latent" else self._made))

    def _guidance(self, scale: float | None, steps: int) -> dict[str, Any]:
        """Give the strength to the guider, which may be saved switched off, or to the call."""
        is_per_step = any(param.name == PER_STEP for param in self._inputs)
        if scale is None and is_per_step:
            raise UserError(
                f"model.guidance_scale: {self.name} has a strength for each of its own steps and training "
                "has one for all; give it"
            )
        if scale is None:
            return {}
        if is_per_step:
            return {PER_STEP: [scale] * steps}
        if not self._guided:
            return {"guidance_scale": scale}
        self.stock.guider.guidance_scale = scale
        self.stock.guider.enable()
        return {}

    def unchanged(
        self,
        *,
        num_inference_steps: int,
        return_dict: bool = False,
        guidance_scale: float | None = None,
        **inputs: Any,
    ) -> Any:
        """What the modular pipeline's own call makes."""
        inputs |= {"num_inference_steps": num_inference_steps}
        inputs |= self._guidance(guidance_scale, num_inference_steps)
        state: Any = self.stock(**_one_as_text(inputs))  # type: ignore[arg-type]
        return tuple(state.get(name) for name in self._made)


def open_modular(folder: Path, dtype: torch.dtype, only_here: bool = True) -> Modular:
    """The pipeline of a modular repository.

    Components that lie in the folder are read from there; others, unless `only_here`, from where it says.
    """
    stock: Any = ModularPipeline.from_pretrained(str(folder), local_files_only=only_here)
    here = {name: str(folder) for name in stock.components if (folder / name).is_dir()}
    stock.load_components(
        dtype=dtype,
        local_files_only=only_here,
        pretrained_model_name_or_path={**here},
        subfolder={n: n for n in here},
    )
    unread = [name for name, component in stock.components.items() if component is None]
    if missing := [name for name in unread if stock._component_specs[name].pretrained_model_name_or_path]:
        raise UserError(
            f"model.path='{folder}': its component '{missing[0]}' cannot be read; save the pipeline with all "
            "its components into the folder"
        )
    return Modular(stock)


def name_of(pipeline: Any) -> str:
    """The name of a pipeline's own class."""
    return pipeline.name if isinstance(pipeline, Modular) else type(pipeline).__name__


def own(pipeline: Any) -> Any:
    """The pipeline as diffusers knows it."""
    return pipeline.stock if isinstance(pipeline, Modular) else pipeline


def _where_levels_are_held(loop: Callable[..., Any]) -> Callable[..., Any]:
    """The loop over noise levels, passed over where there is none: it must not look for a last step."""

    def call(block: Any, components: Any, state: PipelineState) -> Any:
        return (
            loop(block, components, state) if components.scheduler.timesteps.numel() else (components, state)
        )

    return call


def _one_as_text(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A single prompt without its list: some text encoders take nothing else."""
    alone = {
        n: v[0] for n, v in inputs.items() if isinstance(v, list) and len(v) == 1 and v[0].__class__ is str
    }
    return {**inputs, **alone}


def _all_blocks(block: ModularPipelineBlocks) -> Iterator[Any]:
    """The block and all inside it."""
    yield block
    inside: Mapping[str, Any] = getattr(block, "sub_blocks", None) or {}
    for inner in inside.values():
        yield from _all_blocks(inner)
