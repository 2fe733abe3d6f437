"""Samples of one prompt under varied embeddings, so that a group keeps its spread (E2PO, arXiv:2605.15803).

Variant 0 is the prompt's own embedding e; variant k adds a learned shift to the content tokens, found by a
few gradient steps on

    diversity_weight * mean over pairs of cos(e_k, e_l)
    + sum over k of max(|cos(e_k, e) - similarity| - margin, 0)

with e_k the mean over content tokens. At noise level σ the condition is C + γ (C_k - C) with
γ = clip((σ - (1 - reach)) / reach, 0, 1): whole at σ = 1, the prompt's own below σ = 1 - reach. Training
always sees the prompt's own condition. Our reading: numbers of the learning phase are not public.
Shapes: r roots, K variants, L text tokens, D embedding width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.noise import Address, normals
from thalweg.core.part import Part
from thalweg.core.values import Condition
from thalweg.models.contract import Embeds, Policy
from thalweg.rollout.root import Root


class Perturbation(Part):
    """How many variants, how far, and down to which noise level."""

    variants: int = Field(default=4, ge=1)
    """K, the prompt's own embedding among them; 1 varies nothing."""
    reach: float = Field(default=0.3, gt=0, le=1)
    """r: variants act above σ = 1 - r, fading out."""
    similarity: float = Field(default=0.9, gt=-1, lt=1)
    """m: the cosine to the prompt's own embedding that is aimed at."""
    margin: float = Field(default=0.02, ge=0)
    diversity_weight: float = Field(default=0.3, ge=0)
    learning_steps: int = Field(default=40, ge=0)
    learning_rate: PositiveFloat = 0.01
    start_std: PositiveFloat = 0.1
    """Of the shifts before they are learned, relative to the root mean square of the embedding."""

    def variants_of(
        self, policy: Policy, condition: Condition, roots: Sequence[Root], *, seed: int, iteration: int
    ) -> Condition:
        """The embedded condition of every root: roots of a prompt take its variants in turn."""
        if not isinstance(policy, Embeds):
            raise UserError(
                "rollout.perturbation: this model's prompt embeddings cannot be moved; leave it out"
            )
        own = policy.embed(condition)
        rows = torch.tensor([root.condition for root in roots], dtype=torch.int64)
        if self.variants == 1:
            return own.index(rows)
        embedding = own.tensors["embedding"]
        starts = [
            Address(seed, "selection", iteration, slot, path=(2, k))
            for slot in _slots(roots)
            for k in range(1, self.variants)
        ]
        noise = normals(starts, embedding.shape[1:]).to(embedding.device)
        noise = noise.view(-1, self.variants - 1, *embedding.shape[1:])
        # Conditions come in the order of their prompts' slots, one each.
        shifts = self.learn(embedding, own.tensors["content"], noise)
        shifts = torch.cat([torch.zeros_like(shifts[:, :1]), shifts], 1)
        which = torch.tensor([root.seed_group % self.variants for root in roots])
        return Condition({**own.index(rows).tensors, "embedding": embedding[rows] + shifts[rows, which]})

    def learn(
        self,
        embedding: Float[Tensor, "P L D"],
        content: Float[Tensor, "P L"],
        noise: Float[Tensor, "P V L D"],
    ) -> Float[Tensor, "P V L D"]:
        """The shifts of V = K - 1 variants of each prompt."""
        mask = content[:, None, :, None]
        scale = self.start_std * embedding.square().mean((1, 2), keepdim=True).sqrt()[:, None]
        shifts = (noise * scale * mask).requires_grad_()
        optimizer = torch.optim.Adam([shifts], lr=self.learning_rate)
        for _ in range(self.learning_steps):
            with torch.enable_grad():
                loss = self.loss(embedding, content, shifts)
            (shifts.grad,) = torch.autograd.grad(loss, [shifts])
            optimizer.step()
        return shifts.detach() * mask

    def loss(
        self,
        embedding: Float[Tensor, "P L D"],
        content: Float[Tensor, "P L"],
        shifts: Float[Tensor, "P V L D"],
    ) -> Float[Tensor, ""]:
        """What the learning phase makes small, added over prompts."""
        weight = (content / content.sum(1, keepdim=True).clamp(min=1))[:, None, :, None]
        anchor = torch.nn.functional.normalize((embedding[:, None] * weight).sum(2), dim=-1)
        pooled = torch.nn.functional.normalize(((embedding[:, None] + shifts) * weight).sum(2), dim=-1)
        near = ((pooled * anchor).sum(-1) - self.similarity).abs() - self.margin
        count = shifts.shape[1]
        between = pooled @ pooled.transpose(1, 2)
        pairs = (between.sum((1, 2)) - between.diagonal(dim1=1, dim2=2).sum(1)) / max(count * (count - 1), 1)
        return (self.diversity_weight * pairs + near.clamp(min=0).sum(1)).sum()

    def share(self, sigma: float) -> float:
        """γ at this noise level."""
        return min(max((sigma - (1 - self.reach)) / self.reach, 0.0), 1.0)

    def at(self, policy: Policy, own: Condition, varied: Condition, sigma: float) -> Condition:
        """What the network sees at this noise level: the variants, faded towards the prompts' own."""
        if self.share(sigma) == 0 or not isinstance(policy, Embeds):
            return own
        return policy.embed(own).lerp(varied, self.share(sigma))


def _slots(roots: Sequence[Root]) -> list[int]:
    """The prompt slot of each condition row."""
    slots = {root.condition: root.prompt_slot for root in roots}
    return [slots[row] for row in sorted(slots)]
