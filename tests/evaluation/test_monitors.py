import math

import pytest
import torch

from thalweg.core.noise import Address
from thalweg.evaluation import (
    border_deviation,
    drift,
    duplicate_fraction,
    feature_shift,
    frechet_distance,
    image_statistics,
    monitor_metrics,
)


def plain(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([float(red), float(green), float(blue)])[None, :, None, None].expand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("image", "brightness", "saturation"),
    [
        (plain(0, 1, 0), 0.587, 1.0),  # Rec. 601 weighs green by 0.587
        (plain(0.5, 0.5, 0.5), 0.5, 0.0),
        (plain(0.8, 0.4, 0.4), 0.299 * 0.8 + 0.701 * 0.4, 0.5),
        (plain(0, 0, 0), 0.0, 0.0),
    ],
)
def test_a_plain_picture_has_the_brightness_and_saturation_of_its_colour(image, brightness, saturation):
    got = image_statistics(image)
    assert got["brightness"].item() == pytest.approx(brightness, abs=1e-6)
    assert got["saturation"].item() == pytest.approx(saturation, abs=1e-6)
    assert got["contrast"].item() == pytest.approx(0, abs=1e-6)
    assert got["high_frequency"].item() == 0


def test_contrast_of_half_black_and_half_white_is_a_half():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1
    assert image_statistics(image)["contrast"].item() == pytest.approx(0.5)


def test_a_chessboard_is_all_high_and_a_slow_wave_all_low_frequency():
    index = torch.arange(8)
    chessboard = ((index[:, None] + index) % 2).float()
    wave = (0.5 + 0.4 * torch.cos(2 * math.pi * index / 8)).expand(8, 8)
    got = image_statistics(torch.stack([chessboard, wave, (chessboard + wave) / 2])[:, None])[
        "high_frequency"
    ]
    # Energies: a chessboard of amplitude 1/2 has variance 1/4, the wave 0.4²/2 = 0.08.
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, 0.25 / 0.33]))


def test_only_the_frame_counts_for_the_border():
    base, changed = torch.full((1, 3, 16, 16), 0.9), torch.full((1, 3, 16, 16), 0.9)
    changed[..., 1:-1, 1:-1] = 0.0
    assert border_deviation(changed, base) == 0
    changed[..., 0, :] -= 0.3  # 16 of the 60 pixels of the frame
    assert border_deviation(changed, base) == pytest.approx(0.3 * 16 / 60)


def test_the_frechet_distance_of_two_lines_is_that_of_their_gaussians():
    # (μ1 - μ2)² + (s1 - s2)², population deviations: 3 ± 2 against 1 ± 1.
    assert frechet_distance(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2.0]])) == pytest.approx(
        4 + 1
    )


@pytest.mark.parametrize("count", [3, 40])  # fewer images than two features plus one, and many
def test_the_frechet_distance_has_the_closed_form_of_two_dimensions(count):
    # For 2x2 matrices tr √M = √(tr M + 2 √det M), with M = Σ1 Σ2.
    a = Address(1, "selection").normal((count, 2)).double() @ torch.tensor([[2.0, 0.3], [0.0, 0.5]]).double()
    b = Address(2, "selection").normal((count + 2, 2)).double() + 1
    cov_a, cov_b = torch.cov(a.T, correction=0), torch.cov(b.T, correction=0)
    product = cov_a @ cov_b
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected.item(), rel=1e-5)


def test_drift_counts_in_variances_of_the_base():
    base = torch.tensor([[0.0], [2.0]])  # variance 1
    assert drift(base, base) == 0
    assert drift(base + 3, base) == pytest.approx(9)
    assert drift(10 * (base + 3), 10 * base) == pytest.approx(9)


def test_the_shift_of_the_same_seeds_is_a_mean_over_images():
    base = torch.zeros(2, 2)
    assert feature_shift(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), base) == pytest.approx(3)


def test_a_near_copy_counts_for_both_images_and_only_within_the_threshold():
    # At angle φ the distance is 1 - cos φ: 0.005 at 0.1 rad, 0.02 at 0.2 rad.
    angles = torch.tensor([0.0, 0.1, 1.0, 1.2])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    assert duplicate_fraction(features) == 0.5
    assert duplicate_fraction(features, threshold=0.03) == 1.0
    assert duplicate_fraction(features[:1]) == 0.0


def test_the_base_itself_shows_no_drift_and_a_collapsed_policy_all_duplicates():
    images = Address(0, "selection").uniform((8, 3, 16, 16))
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    same = monitor_metrics(images, images, group)
    for name in ("monitor/drift", "monitor/feature_shift", "monitor/border", "monitor/duplicates"):
        assert same[name] == pytest.approx(0, abs=1e-6)
    collapsed = monitor_metrics(images[:1].expand(8, -1, -1, -1), images, group)
    assert collapsed["monitor/duplicates"] == 1.0
    assert collapsed["monitor/drift"] > 0.5


@pytest.mark.parametrize(("waves", "share"), [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)])
def test_high_means_above_half_of_nyquist(waves, share):
    # 8 pixels hold at most 4 waves, so 2 are exactly half of Nyquist, which is not above it.
    wave = (0.5 + 0.4 * torch.cos(2 * math.pi * waves * torch.arange(8) / 8)).expand(1, 1, 8, 8)
    assert image_statistics(wave)["high_frequency"].item() == pytest.approx(share, abs=1e-6)
