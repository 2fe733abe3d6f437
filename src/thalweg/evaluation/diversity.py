"""How unlike each other the images of one prompt are.

    distance   2 / (G(G-1)) · Σ_{i<j} d(x_i, x_j),   d = 1 - cosine, or Euclidean
    Vendi      exp(-Σ_l λ_l log λ_l),   λ = eigenvalues of K/G,  K_ij = cosine(x_i, x_j)
               (Friedman & Dieng 2023, arXiv:2210.02410): the number of images that really differ, 1 .. G
    entropy    -Σ_a p_a log2 p_a over labels (say, a colour the prompt leaves free), in bits, 0 .. log2 G

The entropy of an SDE sampler with preset noise does not depend on the policy, so it cannot show a collapse;
these are measured on finished images. Axes: G images of a prompt, B images of all prompts, D features.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.values import Metrics


def cosine_distance(features: Float[Tensor, "G D"]) -> float:
    """Mean of 1 - cosine over the pairs of a group."""
    return _mean_over_pairs(1 - _similarity(features))


def euclidean_distance(features: Float[Tensor, "G D"]) -> float:
    """Mean Euclidean distance over the pairs of a group."""
    features = features.double()
    return _mean_over_pairs((features[:, None] - features[None]).norm(dim=-1))


def vendi_score(features: Float[Tensor, "G D"]) -> float:
    """The effective number of different images in a group, between 1 and G."""
    eigenvalues = torch.linalg.eigvalsh(_similarity(features) / len(features)).clamp(min=0)
    return torch.special.entr(eigenvalues).sum().exp().item()


def attribute_entropy(labels: Sequence[Hashable]) -> float:
    """Shannon entropy in bits of the labels of a group, as they were counted (no small-sample correction)."""
    return sum(n / len(labels) * math.log2(len(labels) / n) for n in Counter(labels).values())


def diversity_metrics(
    features: Float[Tensor, "B D"],
    group: Int64[Tensor, " B"],  # images of one prompt share a number
    labels: Sequence[Hashable | None] | None = None,  # the attribute of each image; None where it has none
) -> Metrics:
    """Means over groups of distance, Vendi score and attribute entropy, under their names in metrics.jsonl.

    A group of one image has no pair and is left out; so is, of the entropy, one with fewer than two labels.
    """
    rows = [(group == g).nonzero()[:, 0] for g in group.unique()]
    groups = [r for r in rows if len(r) > 1]
    if not groups:
        raise UserError("diversity needs at least two images of some prompt; every prompt has one: draw more")
    distance = _mean([cosine_distance(features[r]) for r in groups])
    vendi = _mean([vendi_score(features[r]) for r in groups])
    metrics = {"diversity": distance, "diversity/distance": distance, "diversity/vendi": vendi}
    if labels is not None:
        seen = [[labels[i] for i in r.tolist() if labels[i] is not None] for r in groups]
        if entropies := [attribute_entropy(s) for s in seen if len(s) > 1]:
            metrics["diversity/attribute_entropy"] = _mean(entropies)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _similarity(features: Float[Tensor, "G D"]) -> Float[Tensor, "G G"]:
    unit = F.normalize(features.double(), dim=1)
    # The diagonal is 1 by definition; set, so that an all-zero feature is like itself as well.
    return (unit @ unit.T).fill_diagonal_(1.0)


def _mean_over_pairs(distances: Float[Tensor, "G G"]) -> float:
    """Mean above the diagonal."""
    size = len(distances)
    if size < 2:
        raise UserError(f"a distance needs a pair, this group has {size} image: draw at least 2 of a prompt")
    upper = torch.triu_indices(size, size, offset=1, device=distances.device)
    return distances[upper[0], upper[1]].mean().item()
