"""What changes in the images while the reward rises: statistics, drift from the base, near-duplicates.

    drift   d² / tr Σ_0,   d² = |μ - μ_0|² + tr(Σ + Σ_0 - 2 (Σ Σ_0)^{1/2})      (the Fréchet distance of FID,
            Heusel et al. 2017, arXiv:1706.08500), index 0 the base's images of the same prompts and seeds

Divided by the base's total variance, drift has no unit: 0 unchanged, 1 moved as far as the base's own images
spread. With centred features A, A_0 (rows divided by √n), tr (Σ Σ_0)^{1/2} is the nuclear norm of A A_0ᵀ, so
no D x D matrix is formed.

Axes: B images, G images of a prompt, n m images of two sets, C H W channels/height/width in [0, 1], D
features.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from thalweg.core.values import Metrics
from thalweg.evaluation.features import image_features, luminance

DUPLICATE_DISTANCE = 0.01
"""1 - cosine up to which two images count as the same; in `image_features`, pixel noise of 3%."""


def image_statistics(images: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, " B"]]:
    """Brightness, saturation, contrast and high-frequency share of each image, all in [0, 1].

    Brightness and contrast are mean and standard deviation of the luma; saturation is the mean of HSV's
    (max - min) / max; high frequency is the share of the luma's spectral energy, without the mean, above half
    of Nyquist.
    """
    images = images.float().clamp(0, 1)
    grey = luminance(images)
    brightest, darkest = images.amax(1), images.amin(1)
    saturation = torch.where(brightest > 0, (brightest - darkest) / brightest.clamp(min=1e-8), 0.0)
    return {
        "brightness": grey.mean((1, 2)),
        "saturation": saturation.mean((1, 2)),
        "contrast": grey.std((1, 2), correction=0),
        "high_frequency": _high_frequency(grey),
    }


def _high_frequency(grey: Float[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    height, width = grey.shape[1:]
    energy = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs() ** 2
    vertical, horizontal = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    high = torch.hypot(*torch.meshgrid(vertical, horizontal, indexing="ij")).to(grey.device) > 0.25
    total = energy.sum((1, 2))
    floor = 1e-10 * (height * width) ** 2  # a plain image has rounding errors only, and no high frequencies
    return torch.where(total > floor, (energy * high).sum((1, 2)) / total.clamp(min=floor), 0.0)


def border_deviation(images: Float[Tensor, "B C H W"], base: Float[Tensor, "B C H W"]) -> float:
    """Mean absolute change of the outermost 1/16 of each side against the base's image of the same seed."""
    width = max(1, min(images.shape[-2:]) // 16)
    frame = torch.ones(images.shape[-2:], dtype=torch.bool, device=images.device)
    frame[width:-width, width:-width] = False
    return (images.float() - base.float())[..., frame].abs().mean().item()


def frechet_distance(features: Float[Tensor, "n D"], base: Float[Tensor, "m D"]) -> float:
    """The squared Fréchet distance of the Gaussians fitted to two feature sets (population covariances).

    Biased upward for few images, so compare it only between sets of equal size; two equal sets give 0.
    """
    mean, centred = _fit(features)
    base_mean, base_centred = _fit(base)
    cross = torch.linalg.svdvals(centred @ base_centred.T).sum()
    spread = centred.square().sum() + base_centred.square().sum() - 2 * cross
    return ((mean - base_mean).square().sum() + spread).clamp(min=0).item()


def _fit(features: Float[Tensor, "n D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "k D"]]:
    """Mean, and a root of the covariance with at most D rows."""
    features = features.double()
    mean = features.mean(0)
    centred = (features - mean) / len(features) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R if len(features) > features.shape[1] else centred


def drift(features: Float[Tensor, "n D"], base: Float[Tensor, "m D"]) -> float:
    """The Fréchet distance from the base in units of the base's total variance."""
    _, centred = _fit(base)
    return frechet_distance(features, base) / max(centred.square().sum().item(), 1e-12)


def feature_shift(features: Float[Tensor, "B D"], base: Float[Tensor, "B D"]) -> float:
    """Mean Euclidean feature distance between each image and the base's of the same prompt and seed."""
    return (features.double() - base.double()).norm(dim=1).mean().item()


def duplicate_fraction(features: Float[Tensor, "G D"], *, threshold: float = DUPLICATE_DISTANCE) -> float:
    """Share of the images of a group that have a near-copy in it: 1 - cosine at most `threshold`."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    near = (1 - unit @ unit.T <= threshold).fill_diagonal_(False)
    return near.any(1).double().mean().item()


def monitor_metrics(
    images: Float[Tensor, "B C H W"],
    base: Float[Tensor, "B C H W"],  # the base's images of the same prompts and seeds, row by row
    group: Int64[Tensor, " B"],  # images of one prompt share a number
) -> Metrics:
    """Every `monitor/...` of metrics.jsonl that can be read off images (so not the held-out reward)."""
    features, base_features = image_features(images), image_features(base)
    duplicates = [duplicate_fraction(features[group == g]) for g in group.unique()]
    return {
        **{f"monitor/{name}": values.mean().item() for name, values in image_statistics(images).items()},
        "monitor/border": border_deviation(images, base),
        "monitor/drift": drift(features, base_features),
        "monitor/feature_shift": feature_shift(features, base_features),
        "monitor/duplicates": sum(duplicates) / len(duplicates),
    }
