import torch
from torch.testing import assert_close

from thalweg.objectives.velocity_regression import Look, regressed, shortened


class TwoVelocities:
    """A field with one number everywhere for the policy, and another one for the reference."""

    def __init__(self, policy: float, reference: float) -> None:
        self.policy = torch.tensor(policy, requires_grad=True)
        self.reference = reference

    def velocity(self, x, sigma, *, recompute=False):
        return self.policy.expand_as(x)

    def velocity_of(self, name, x, sigma):
        assert name == "reference"
        return torch.full_like(x, self.reference)

    def pull_back(self, name, x, sigma, slope):
        raise AssertionError("a regression asks for velocities alone")

    reward = as_stored = pull_back


def test_the_error_is_from_the_shifted_reference_and_the_distance_from_the_reference_itself():
    field, x, sigma = TwoVelocities(3.0, 1.0), torch.zeros(2, 3), torch.ones(2)
    looks = [
        Look(x, sigma, torch.full_like(x, 0.5)),
        Look(x, sigma, torch.full_like(x, -1.0), weight=torch.tensor([2.0, 4.0])),
    ]
    terms, report = regressed(field, "reference", looks, recompute=False)
    # (3 - 1 - .5)² = 2.25 and (3 - 1 + 1)² = 9, weighed by 2 and 4.
    assert_close(terms.detach(), torch.tensor([(2.25 + 18) / 2, (2.25 + 36) / 2]))
    assert report["distance/reference"].tolist() == [4, 4]
    terms.sum().backward()
    # 2 w (v - target) / 2 looks: 1.5 + 2·3 and 1.5 + 4·3.
    assert_close(field.policy.grad, torch.tensor(1.5 + 6 + 1.5 + 12))


def test_a_shift_that_is_too_large_keeps_its_direction():
    shift = torch.tensor([[3.0, -3.0], [0.3, 0.4], [0.0, 0.0]])
    assert shortened(shift, None) is shift
    assert_close(shortened(shift, 1.0), torch.tensor([[1.0, -1.0], [0.3, 0.4], [0.0, 0.0]]))
