"""The seam: a scheduler that makes one call of a stock pipeline evaluate the guided velocity at given states.

A flow pipeline asks its scheduler for noise levels, calls its network at each and hands the result,
dx/dsigma = noise - data, to `step`. This one holds a single level, or none at all, and writes down what
reaches `step`; everything between (packing, positions, masks, guidance, direction of time) stays the
pipeline's. Pipelines that predict noise let their scheduler scale what the network is fed
(`scale_model_input`), so their states too are a flow's at the seam; a `Reading` converts.
Shapes: B rows, ... latent axes of the pipeline.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from jaxtyping import Float
from torch import Tensor

from thalweg.models.diffusers.readings import Reading


class Rows(Tensor):
    """A number for each row where a pipeline expects one for all: `expand` to whole batches tiles.

    A batch that guidance doubles is (negative, positive) or the reverse, each in the order of the rows.
    """

    def expand(self, *sizes: Any) -> Tensor:  # type: ignore[override]
        plain = self.as_subclass(Tensor)
        count = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None
        if self.ndim == 1 and count is not None and count % len(self) == 0:
            return plain.repeat(count // len(self))
        return plain.expand(*sizes)

    def __float__(self) -> float:
        """The first row's: pipelines tell it to caches, which must be off in training."""
        return float(self.as_subclass(Tensor).flatten()[0])


class NoLevels(Tensor):
    """No timesteps, counted as one: pipelines that may start part way refuse to run without any."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return iter(())


class Seam(FlowMatchEulerDiscreteScheduler):
    """Stands in the place of the pipeline's scheduler."""

    init_noise_sigma = 1.0
    reading: Reading
    steps: list[tuple[Tensor, Tensor]]
    """(state, velocity) of every `step` of the call; two where a pipeline has two latents."""
    stop_before_network: bool
    """Raise `Stopped` once the noise levels are asked for: conditions are encoded by then."""

    def hold(self, sigma: Float[Tensor, " B"] | None, state_axes: int = 1) -> None:
        """Serve this level next, or none: a call without a network pass. Forgets what was written down.

        On the CPU, where comparing levels waits for nothing; `set_timesteps` moves them.
        """
        self.steps, self.stop_before_network = [], False
        sigma = None if sigma is None else sigma.float().cpu()
        self._sigma = torch.zeros(0) if sigma is None else sigma
        if sigma is None:
            self._held = torch.zeros(1), torch.zeros(0).as_subclass(NoLevels)
        elif bool((sigma == sigma[0]).all()):
            one = sigma[:1]
            self._held = torch.cat([one, torch.zeros_like(one)]), self.reading.timestep(one)
        else:
            rows = sigma.view(1, -1, *[1] * (state_axes - 1))
            both = torch.cat([rows, torch.zeros_like(rows)])
            self._held = both.as_subclass(Rows), self.reading.timestep(sigma)[None].as_subclass(Rows)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Pipelines look for these names in the signature; the schedule itself is held."""
        if self.stop_before_network:
            raise Stopped
        self.sigmas, self.timesteps = (held.to(device) for held in self._held)
        if timesteps is not None and sigmas is not None and mu is not None:
            self.timesteps = self._unshifted(self.timesteps, mu)
        self.num_inference_steps = len(self.timesteps)

    def _unshifted(self, timesteps: Tensor, mu: float) -> Tensor:
        """CogView4 shifts its levels alone: its network is told the time that shifts to the level."""
        shift = 1 / (math.exp(mu) if self.config["time_shift_type"] == "exponential" else mu)
        whole = self.config["num_train_timesteps"]
        share = timesteps / whole
        return whole * shift * share / (1 - share + shift * share)

    def scale_model_input(self, sample: Tensor, *args: Any) -> Tensor:
        """What the network is fed; a batch that guidance doubled comes as it is."""
        return self.reading.fed(sample, self._of(sample))

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        """Write down, and leave the state where it is."""
        velocity = self.reading.velocity(model_output.as_subclass(Tensor), sample, self._of(sample))
        self.steps.append((sample, velocity))
        if options.get("return_dict", True):
            return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample)  # type: ignore[arg-type]
        return (sample,)

    def _of(self, sample: Tensor) -> Tensor:
        """The level of each row of a whole batch, or of one that guidance doubled."""
        return self._sigma.repeat(len(sample) // len(self._sigma))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seam":
        """LTX-2 copies its scheduler for the sound; both write into one list."""
        return copy.copy(self)


class Stopped(Exception):
    """Ends a call that was made for its conditions alone."""
