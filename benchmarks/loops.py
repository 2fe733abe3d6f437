"""What the library's updates cost beside straightforward ones, and which saving brings how much.

    python benchmarks/loops.py [sd3 flux] [--repeats 5]

A straightforward loop, written here, drives the same tiny pipeline by itself: it keeps guidance as one
doubled batch with gradients for both halves, always makes a reference pass, and takes one forward for each
step and sample batch. Ours is the policy and the objective of a run. All variants of a family are timed in
turn within one process, and what is printed are ratios of process CPU time on one thread: machines differ and
other programs disturb.

    rollout      samples a second
    update       trained steps a second: forward, loss and backward of one step of one sample
    no reference an update without the pass that only a KL term reads
    detached     an update whose unconditional half has no gradient (an estimator of its own)
    together     several steps in one batch, rows at different noise levels, against one forward a step
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

from thalweg.core.values import Prompt
from thalweg.flow import FlowSDE, Shifted
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.policy import DiffusersPolicy
from thalweg.objectives import ClippedRatio
from thalweg.rollout import Deterministic, Rollout, Root, grow

BATCH, STEPS = 8, 4
KERNEL = FlowSDE(noise_level=0.7)
PROMPTS = [Prompt("a red square"), Prompt("a blue line")]


class Straightforward:
    """Only SD3 and FLUX: what a loop of one's own states again of their calls."""

    def __init__(self, policy: DiffusersPolicy) -> None:
        self.network, self.scale = policy.pipeline.transformer, policy.model.guidance_scale or 1.0
        encoded = [policy.encoder.answers([prompt])[0] for prompt in PROMPTS]
        rows = [encoded[i * len(PROMPTS) // BATCH] for i in range(BATCH)]
        self.is_sd3 = len(encoded[0]) == 4
        if self.is_sd3:
            text, negative, pooled, negative_pooled = (torch.cat(parts) for parts in zip(*rows, strict=True))
            self.text, self.pooled = torch.cat([negative, text]), torch.cat([negative_pooled, pooled])
        else:
            self.text, self.pooled = (torch.cat([row[i] for row in rows]) for i in (0, 1))
            self.text_ids = encoded[0][2]
            side = round(policy.latent_shape[0] ** 0.5)
            self.image_ids = torch.stack(
                [
                    torch.zeros(side, side),
                    *torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"),
                ],
                -1,
            ).view(-1, 3)

    def velocity(self, x: Tensor, sigma: Tensor, detach_negative: bool = False) -> Tensor:
        """Guided, at one level."""
        if not self.is_sd3:
            return self.network(
                hidden_states=x,
                timestep=sigma,
                guidance=torch.full((len(x),), self.scale),
                pooled_projections=self.pooled,
                encoder_hidden_states=self.text,
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
            ).sample
        if detach_negative:
            half = len(x)
            with torch.no_grad():
                negative = self._sd3(x, sigma, self.text[:half], self.pooled[:half])
            positive = self._sd3(x, sigma, self.text[half:], self.pooled[half:])
        else:
            both = self._sd3(torch.cat([x, x]), torch.cat([sigma, sigma]), self.text, self.pooled)
            negative, positive = both.chunk(2)
        return negative + self.scale * (positive - negative)

    def _sd3(self, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        return self.network(
            hidden_states=x, timestep=sigma * 1000, encoder_hidden_states=text, pooled_projections=pooled
        ).sample


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """CPU seconds, the median after one warm-up."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return sorted(taken[1:])[repeats // 2]


def measure(name: str, repeats: int) -> dict[str, float]:
    """Ratios of one family, and the rates they are made of."""
    with tempfile.TemporaryDirectory() as folder:
        saved = tiny.saved(name, Path(folder))
        fields = {k.removeprefix("model."): v for k, v in saved.items() if k != "model"}
        policy = DiffusersModel(**{**fields, "path": saved["model"]}).load()
    plain = Straightforward(policy)
    sigmas = Shifted().sigmas(STEPS)
    rollout = Rollout(plan=Deterministic(), group_size=BATCH // 2, steps=STEPS, micro_batch=BATCH)
    roots = [Root(i // (BATCH // 2), i % (BATCH // 2), i, i // (BATCH // 2)) for i in range(BATCH)]
    condition = policy.encode(PROMPTS).index(torch.arange(BATCH) * len(PROMPTS) // BATCH)
    x = torch.randn(BATCH, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    parameters = list(policy.weights.parameters.values())
    assert torch.allclose(
        plain.velocity(x, sigmas[1].expand(BATCH)),
        policy.velocity(x, sigmas[1].expand(BATCH), condition),
        atol=1e-4,
    ), "the straightforward loop computes something else"

    @torch.no_grad()
    def their_rollout() -> None:
        state = x
        for sigma, sigma_next in pairwise(sigmas):
            state = state + (sigma_next - sigma) * plain.velocity(state, sigma.expand(BATCH))

    def loss_of(velocity: Tensor, state: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        step = KERNEL.transition(state, velocity, sigma, sigma_next)
        log_prob = step.log_prob(state)
        ratio = (log_prob - log_prob.detach()).exp()
        return -torch.minimum(ratio, ratio.clamp(1 - CLIP, 1 + CLIP)).mean()

    def their_update(reference: bool = True, detached: bool = False) -> Callable[[], None]:
        def update() -> None:
            for sigma, sigma_next in pairwise(sigmas[:-1]):
                levels = sigma.expand(BATCH)
                if reference:
                    with torch.no_grad():
                        plain.velocity(x, levels)
                velocity = plain.velocity(x, levels, detached)
                torch.autograd.grad(loss_of(velocity, x, sigma, sigma_next), parameters, allow_unused=True)

        return update

    def our_update(together: bool) -> Callable[[], None]:
        levels, nexts = sigmas[:-2], sigmas[1:-1]

        def update() -> None:
            if together:
                state = x.repeat(len(levels), *[1] * (x.ndim - 1))
                rows = condition.index(torch.arange(BATCH).repeat(len(levels)))
                batches = [(state, levels.repeat_interleave(BATCH), nexts.repeat_interleave(BATCH), rows)]
            else:
                batches = [
                    (x, a.expand(BATCH), b.expand(BATCH), condition)
                    for a, b in zip(levels, nexts, strict=True)
                ]
            for state, sigma, sigma_next, rows in batches:
                velocity = policy.velocity(state, sigma, rows)
                torch.autograd.grad(
                    loss_of(velocity, state, sigma, sigma_next), parameters, allow_unused=True
                )

        return update

    times = {
        "their_rollout": seconds(their_rollout, repeats),
        "our_rollout": seconds(lambda: grow(policy, PROMPTS, roots, rollout, seed=0, iteration=0), repeats),
        "their_update": seconds(their_update(), repeats),
        "no_reference": seconds(their_update(reference=False), repeats),
        "detached": seconds(their_update(reference=False, detached=plain.is_sd3), repeats),
        "our_update": seconds(our_update(together=False), repeats),
        "together": seconds(our_update(together=True), repeats),
    }
    trained = BATCH * (STEPS - 1)
    return {
        "samples_per_second/theirs": BATCH / times["their_rollout"],
        "samples_per_second/ours": BATCH / times["our_rollout"],
        "rollout/speedup": times["their_rollout"] / times["our_rollout"],
        "trained_steps_per_second/theirs": trained / times["their_update"],
        "trained_steps_per_second/ours": trained / times["our_update"],
        "update/speedup": times["their_update"] / times["our_update"],
        "saving/no_reference": times["their_update"] / times["no_reference"],
        "saving/detached_negative": times["no_reference"] / times["detached"],
        "saving/steps_together": times["our_update"] / times["together"],
        "overhead/seam": times["our_update"] / times["no_reference"],
    }


CLIP = ClippedRatio().clip_range

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", default=["sd3", "flux"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for family in options.families:
        print(
            json.dumps(
                {"family": family, **{k: round(v, 3) for k, v in measure(family, options.repeats).items()}}
            )
        )
