from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.testing import assert_close

from thalweg.flow import DPMSolver, Euler, Heun, Memory, Solver

SOLVERS = [Euler(), Heun(), DPMSolver()]


def spread(sigma: Tensor) -> Tensor:
    """Std of x at noise level σ, for 1-D data N(0, 1/4)."""
    return ((1 - sigma) ** 2 / 4 + sigma**2).sqrt()


def solve(solver, sigmas: Tensor) -> Tensor:
    """x at the last level from x = 1 at the first, under the exact velocity of the same data."""
    x, memory, grid = torch.ones(1, 1, dtype=torch.float64), None, solver.grid(sigmas)
    for sigma, sigma_next in pairwise(grid):
        velocity = (sigma - (1 - sigma) / 4) / spread(sigma) ** 2 * x
        x, memory = solver.step(x, velocity, sigma, sigma_next, memory)
    return x.squeeze()


def take(memory: Memory, index: list[int]) -> Memory:
    return None if memory is None else {name: value[index] for name, value in memory.items()}


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (DPMSolver(), 2)])
def test_twice_the_steps_divide_the_error_by_two_to_the_order(solver, order):
    def error(num_steps: int) -> float:
        sigmas = torch.linspace(0.95, 0.05, num_steps + 1, dtype=torch.float64)
        # The exact flow of Gaussian data scales x with the spread of the marginal.
        return abs((solve(solver, sigmas) - spread(sigmas[-1]) / spread(sigmas[0])).item())

    assert error(100) / error(200) == pytest.approx(2**order, rel=0.08)
    assert error(200) / error(400) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize(("solver", "error"), [(Euler(), 1.5e-2), (Heun(), 3.3e-4), (DPMSolver(), 1.8e-3)])
def test_a_whole_chain_of_fifty_steps_ends_near_the_data(solver, error):
    sigmas = torch.linspace(1, 0, 51, dtype=torch.float64)
    assert abs(solve(solver, sigmas).item() - 0.5) < error


def test_an_euler_step_moves_along_the_velocity():
    x, velocity = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]])
    got, memory = Euler().step(x, velocity, torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.0]), None)
    assert_close(got, torch.tensor([[0.6], [0.0]]))
    assert memory is None


def test_a_heun_step_moves_along_the_mean_of_the_velocities_at_both_its_ends():
    x = torch.ones(1, 1)
    predicted, memory = Heun().step(x, 2 * x, 0.8, 0.6, None)
    assert_close(predicted, torch.full((1, 1), 0.6))  # 1 - 0.2·2
    corrected, memory = Heun().step(predicted, 4 * x, 0.6, 0.6, memory)
    assert_close(corrected, torch.full((1, 1), 0.4))  # 1 - 0.2·(2 + 4)/2
    assert memory is None


def test_heun_calls_twice_at_each_level_but_the_first_and_zero():
    levels = torch.tensor([1.0, 0.6, 0.2, 0.0])
    assert Heun().grid(levels).tolist() == pytest.approx([1.0, 0.6, 0.6, 0.2, 0.2, 0.0])
    assert Heun().grid(levels[:2]).tolist() == pytest.approx([1.0, 0.6, 0.6])
    for solver in (Euler(), DPMSolver()):
        assert torch.equal(solver.grid(levels), levels)


@pytest.mark.parametrize(
    ("sigma_next", "x_next"),
    [
        (0.2, 1.0),  # h = h_0 = log 4: 1 - 0.3·0.5 + 0.3/0.5 · 1/2 · (0.75 - 0.25)
        (1 / 3, 0.9583333),  # h = log 2: 1 - 0.5/6 + 1/3 · 1/4 · 0.5
        (0.0, 0.75),  # x̂0
    ],
)
def test_dpm_solver_corrects_by_the_change_of_the_predicted_data(sigma_next, x_next):
    memory = DPMSolver().observe(torch.full((1, 1), 1.05), torch.ones(1, 1), 0.8)  # x̂0 = 0.25 at σ = 0.8
    got, _ = DPMSolver().step(torch.ones(1, 1), torch.full((1, 1), 0.5), 0.5, sigma_next, memory)
    assert_close(got, torch.full((1, 1), x_next))


def test_dpm_solver_is_the_published_exponential_form():
    x, velocity, x0_before = torch.randn(3, 2, 3, dtype=torch.float64)
    before, sigma, sigma_next = (torch.tensor([s, s / 2]).double() for s in (0.9, 0.7, 0.4))
    h, h_before = ((1 / b - 1).log() - (1 / a - 1).log() for a, b in ((sigma, sigma_next), (before, sigma)))
    x0 = x - sigma[:, None] * velocity
    averaged = x0 + ((x0 - x0_before) / (h_before / h)[:, None]) / 2
    expected = (sigma_next / sigma)[:, None] * x - ((1 - sigma_next) * torch.expm1(-h))[:, None] * averaged
    got, _ = DPMSolver().step(x, velocity, sigma, sigma_next, {"x0": x0_before, "sigma": before})
    assert_close(got, expected)


@pytest.mark.parametrize(
    ("start", "sigma", "sigma_next"), [(None, 0.5, 0.4), (1.0, 0.9, 0.8), (0.2, 0.1, 0.0)]
)
def test_dpm_solver_is_first_order_at_the_start_after_pure_noise_and_at_the_end(start, sigma, sigma_next):
    x, velocity = torch.randn(2, 3, 4)
    memory = None if start is None else DPMSolver().observe(x + 1, velocity, start)
    got, _ = DPMSolver().step(x, velocity, sigma, sigma_next, memory)
    assert_close(got, x + (sigma_next - sigma) * velocity)


def test_a_step_of_a_kernel_can_feed_the_memory_of_dpm_solver():
    x, velocity = torch.randn(2, 3, 4)
    _, memory = DPMSolver().step(x, velocity, 0.6, 0.5, None)
    assert_close(DPMSolver().observe(x, velocity, 0.6), memory)
    assert Euler().observe(x, velocity, 0.6) is None
    assert Heun().observe(x, velocity, 0.6) is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_memory_follows_its_node_when_trajectories_branch(solver):
    x, first, second = torch.randn(3, 3, 2, 2)
    levels = torch.tensor([[0.9, 0.6, 0.5], [0.8, 0.5, 0.0], [1.0, 0.7, 0.4]])
    index = [2, 0, 0, 1]
    x_next, memory = solver.step(x, first, levels[:, 0], levels[:, 1], None)
    branched, _ = solver.step(
        x_next[index], second[index], levels[index, 1], levels[index, 2], take(memory, index)
    )
    for row, node in enumerate(index):
        at = slice(node, node + 1)
        moved, alone = solver.step(x[at], first[at], levels[at, 0], levels[at, 1], None)
        moved, _ = solver.step(moved, second[at], levels[at, 1], levels[at, 2], alone)
        assert_close(branched[row : row + 1], moved)


@pytest.mark.parametrize("solver", SOLVERS)
def test_bfloat16_latents_are_stepped_in_float32(solver):
    x, velocity = torch.randn(2, 3, 4).bfloat16()
    x_next, memory = solver.step(x, velocity, 0.6, 0.597, None)
    assert_close(x_next, x.float() - 0.003 * velocity.float())
    x_next, _ = solver.step(x_next.bfloat16(), velocity, 0.597, 0.59, memory)
    assert x_next.dtype == torch.float32


def test_heun_averages_bfloat16_velocities_in_float32():
    x, first, second = torch.tensor([[[1.0]], [[1.0]], [[1.0078125]]]).bfloat16()
    predicted, memory = Heun().step(x, first, 1.0, 0.5, None)
    corrected, _ = Heun().step(predicted, second, 0.5, 0.5, memory)
    assert_close(corrected, torch.tensor([[0.498046875]]), atol=0, rtol=0)  # 1 - 2.0078125 / 4


def test_dpm_solver_stays_finite_a_rounding_below_pure_noise():
    below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    levels, x = torch.linspace(0.01, 0.99, 4000), torch.ones(4000, 1)
    got, _ = DPMSolver().step(x, x, levels, 0.9 * levels, DPMSolver().observe(x, 2 * x, below_one))
    assert got.isfinite().all()


def test_a_recipe_names_a_solver_by_its_kind():
    read = TypeAdapter(Solver).validate_python
    assert [read({"kind": kind}) for kind in ("euler", "heun", "dpm_solver")] == SOLVERS
    with pytest.raises(ValidationError):
        read({"kind": "rk4"})
