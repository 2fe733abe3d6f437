import math

import pytest
import torch
from torch.testing import assert_close

from thalweg.objectives.advantage_map import AdvantageMap

TWO_REWARDS = torch.tensor([[-4.0, -3.0], [0.5, -0.5], [1.0, 1.0]])  # together -7, 0, 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-7, 0, 2]),
        ({"limit": 5.0, "scale": 0.2}, [-1, 0, 0.4]),  # AWM
        ({"shape": "tanh", "limit": 3.0}, [-3 * math.tanh(7 / 3), 0, 3 * math.tanh(2 / 3)]),  # V-GRPO
        ({"shape": "sign"}, [-1, 0, 1]),
        ({"side": "positive"}, [0, 0, 2]),
        ({"side": "negative", "scale": 0.1}, [-0.7, 0, 0]),
    ],
)
def test_advantages_are_added_shaped_and_scaled(settings, expected):
    assert_close(AdvantageMap(**settings)(TWO_REWARDS), torch.tensor(expected).float())
