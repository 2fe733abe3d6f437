"""A fixed feature space for small images that needs no weights: where which colours and edges stand out.

A picture becomes seven distributions: its palette (3x3x3 colour bins), and at each level of a 1x1, 2x2, 4x4
pyramid (Lazebnik et al. 2006) how what stands out is spread over cells and colours, and how its edges are
spread over cells and 8 directions. A pixel stands out by its distance from the picture's median colour. The
feature vector is the square root of all seven, scaled to length 1:

    <f, g> = mean over the seven of Σ_b √(p_b q_b)        (the Bhattacharyya coefficient)

so a cosine lies in [0, 1], and 1 - cosine is the mean squared Hellinger distance. Pixels are shared
linearly between neighbouring bins, and differences below a threshold do not count, so pixel noise moves it
little. What it does not see: a shift inside a cell (objects and edges), the resolution (roughly), weak
texture. What it sees: colour, size and place of things, their outlines, mirroring, the background's colour.

Axes: B images, C H W channels/height/width in [0, 1], D features.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LEVELS = (1, 2, 4)
DIRECTIONS = 8
LARGEST_SIDE = 64
FAINT_COLOUR = 0.1  # distance from the median colour, of any channel, that does not stand out yet
FAINT_EDGE = 0.05  # gradient per pixel that is not an edge yet
NOTHING = 0.01  # mass of the bin "nothing stands out": what a blank picture is made of


def luminance(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Rec. 601 luma of RGB images; the channel itself of grey ones."""
    if images.shape[1] == 1:
        return images[:, 0]
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)


def image_features(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
    """Features of length 1 for grey or RGB images in [0, 1]; larger ones are averaged down to 64 pixels."""
    images = images.float().clamp(0, 1)
    height, width = images.shape[-2:]
    if max(height, width) > LARGEST_SIDE:
        images = F.adaptive_avg_pool2d(images, (min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)))
    colour = _colour(images)
    spread = [*_pyramid(_standing_out(images) * colour), *_pyramid(_edges(luminance(images)))]
    distributions = [colour.mean((2, 3)), *spread]
    return torch.cat([(p / len(distributions)).clamp(min=0).sqrt() for p in distributions], 1)


def _colour(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 27 H W"]:
    """The share of each pixel in 3x3x3 colour bins, centred at 0, 1/2 and 1 of every channel."""
    channels = images.expand(-1, 3, -1, -1).unbind(1)
    bins = [torch.stack([F.relu(1 - 2 * c), 1 - (2 * c - 1).abs(), F.relu(2 * c - 1)], 1) for c in channels]
    return torch.einsum("brhw,bghw,blhw->brglhw", *bins).flatten(1, 3)


def _standing_out(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    median = images.flatten(2).median(2).values[..., None, None]
    return F.relu((images - median).abs().amax(1, keepdim=True) - FAINT_COLOUR)


def _edges(grey: Float[Tensor, "B H W"]) -> Float[Tensor, "B 8 H W"]:
    """The gradient's strength of each pixel, shared between the two nearest of 8 directions."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    strength = F.relu(torch.hypot(dx, dy) - FAINT_EDGE)
    turn = torch.atan2(dy, dx) / (2 * math.pi) * DIRECTIONS
    apart = (turn[:, None] - torch.arange(DIRECTIONS, device=grey.device).view(1, -1, 1, 1)).remainder(
        DIRECTIONS
    )
    return strength[:, None] * F.relu(1 - torch.minimum(apart, DIRECTIONS - apart))


def _pyramid(mass: Float[Tensor, "B K H W"]) -> list[Float[Tensor, "B bins"]]:
    """At each level the mass's distribution over cells and kinds, with a last bin for nothing."""
    levels = []
    for level in LEVELS:
        cells = F.adaptive_avg_pool2d(mass, level).flatten(1) / level**2
        cells = F.pad(cells, (0, 1), value=NOTHING)
        levels.append(cells / cells.sum(1, keepdim=True))
    return levels
