import pytest
import torch
from torch import Tensor

from thalweg.core.noise import Address
from thalweg.evaluation import image_features

RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.9)


def scene(
    colour: tuple[float, float, float], top: int, left: int, *, side: int = 6, canvas: int = 16
) -> Tensor:
    image = torch.full((3, canvas, canvas), 0.95)
    image[:, top : top + side, left : left + side] = torch.tensor(colour)[:, None, None]
    return image


def distance(a: Tensor, b: Tensor) -> float:
    one, other = image_features(torch.stack([a, b]))
    return 1 - (one @ other).item()


@pytest.mark.parametrize("channels", [1, 3])
def test_features_have_length_one_also_of_a_blank_picture(channels):
    images = torch.cat([torch.zeros(1, channels, 16, 16), torch.rand(2, channels, 16, 16)])
    torch.testing.assert_close(image_features(images).norm(dim=1), torch.ones(3))


def test_another_colour_or_place_or_mirror_image_is_farther_than_noise():
    here = scene(RED, 2, 1)
    noise = Address(0, "selection").normal((3, 16, 16))
    jitter = max(distance(here, here + 0.03 * noise), distance(here, here - 0.03 * noise))
    others = [scene(BLUE, 2, 1), scene(RED, 9, 9), here.flip(2), scene(RED, 2, 1, side=3), here * 0.5]
    assert min(distance(here, other) for other in others) > 10 * jitter


def test_a_blank_picture_is_unlike_a_scene():
    assert distance(scene(RED, 2, 1), torch.full((3, 16, 16), 0.95)) > 0.5


def test_an_object_moved_within_its_cell_keeps_its_colours_in_place():
    # A 2x2 object inside one 4x4 cell: what stands out is spread over cells and colours as before.
    near, far = scene(RED, 4, 4, side=2), scene(RED, 4, 12, side=2)
    assert distance(near, scene(RED, 5, 5, side=2)) < distance(near, far) / 3


def test_disjoint_pictures_are_at_distance_one_less_the_bins_they_share():
    # Black and white share no palette bin, and nothing stands out in either: 6 of 7 distributions agree.
    assert distance(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)) == pytest.approx(1 / 7)


def test_enlarging_a_picture_changes_little():
    small = scene(RED, 4, 4, side=8)
    large = small.repeat_interleave(8, 1).repeat_interleave(8, 2)  # 128 pixels: averaged down to 64
    one, other = image_features(small[None])[0], image_features(large[None])[0]
    colours = 27 + 27 * 21 + 3  # edges grow thinner with the resolution, colours stay
    torch.testing.assert_close(one[:27], other[:27])
    assert (one[:colours] @ other[:colours]).item() == pytest.approx(4 / 7, abs=1e-3)


def test_features_are_continuous_in_the_pixels():
    image = scene(RED, 3, 5)
    assert distance(image, image + 1e-4) < 1e-4
