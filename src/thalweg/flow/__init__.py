"""Mathematics of flows on tensors: noise levels, the forward path, kernels (with a density) and solvers."""

from thalweg.flow.conversions import (
    noise_from_velocity,
    score_from_velocity,
    velocity_from_noise,
    velocity_from_score,
    velocity_from_x0,
    x0_from_velocity,
)
from thalweg.flow.gaussian import Reduction, Transition
from thalweg.flow.kernels import CPS, DanceSDE, DPMSolverSDE, FlowSDE, Kernel, Precise
from thalweg.flow.paths import LinearPath
from thalweg.flow.schedules import Diffusers, DynamicShift, Schedule, Shifted, Uniform
from thalweg.flow.solvers import DPMSolver, Euler, Heun, Memory, Solver

__all__ = [
    "CPS",
    "DPMSolver",
    "DPMSolverSDE",
    "DanceSDE",
    "Diffusers",
    "DynamicShift",
    "Euler",
    "FlowSDE",
    "Heun",
    "Kernel",
    "LinearPath",
    "Memory",
    "Precise",
    "Reduction",
    "Schedule",
    "Shifted",
    "Solver",
    "Transition",
    "Uniform",
    "noise_from_velocity",
    "score_from_velocity",
    "velocity_from_noise",
    "velocity_from_score",
    "velocity_from_x0",
    "x0_from_velocity",
]
