"""Mathematics of flows on tensors: noise levels, the forward path, kernels (with a density) and solvers."""

from thalweg.flow.conversions import (
    noise_from_velocity,
    score_from_velocity,
    velocity_from_noise,
    velocity_from_score,
    velocity_from_x0,
    x0_from_velocity,
)
from thalweg.flow.gaussian import Prediction, Reduction, Transition
from thalweg.flow.kernels import (
    CPS,
    DDIM,
    DancePrecise,
    DanceSDE,
    DPMSolverSDE,
    FlowSDE,
    Kernel,
    LearnedVariance,
    LinearSDE,
    Precise,
    StepSDE,
)
from thalweg.flow.paths import LinearPath
from thalweg.flow.schedules import Diffusers, DynamicShift, Schedule, Shifted, Uniform, VariancePreserving
from thalweg.flow.solvers import DPMSolver, Euler, Heun, Memory, Solver
from thalweg.flow.variance_preserving import (
    alpha_bar_from_sigma,
    flow_norm,
    from_variance_preserving,
    sigma_from_alpha_bar,
    to_variance_preserving,
    v_prediction_from_velocity,
    velocity_from_v_prediction,
)

__all__ = [
    "CPS",
    "DDIM",
    "DPMSolver",
    "DPMSolverSDE",
    "DancePrecise",
    "DanceSDE",
    "Diffusers",
    "DynamicShift",
    "Euler",
    "FlowSDE",
    "Heun",
    "Kernel",
    "LearnedVariance",
    "LinearPath",
    "LinearSDE",
    "Memory",
    "Precise",
    "Prediction",
    "Reduction",
    "Schedule",
    "Shifted",
    "Solver",
    "StepSDE",
    "Transition",
    "Uniform",
    "VariancePreserving",
    "alpha_bar_from_sigma",
    "flow_norm",
    "from_variance_preserving",
    "noise_from_velocity",
    "score_from_velocity",
    "sigma_from_alpha_bar",
    "to_variance_preserving",
    "v_prediction_from_velocity",
    "velocity_from_noise",
    "velocity_from_score",
    "velocity_from_v_prediction",
    "velocity_from_x0",
    "x0_from_velocity",
]
