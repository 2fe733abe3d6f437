"""Stochastic kernels: each gives a step its two numbers, k and std (`flow/gaussian.py` has the rest)."""

from typing import Annotated

from pydantic import Field, SerializeAsAny

from thalweg.core.part import OWN_PART
from thalweg.flow.kernels.cps import CPS
from thalweg.flow.kernels.dance_precise import DancePrecise
from thalweg.flow.kernels.dance_sde import DanceSDE
from thalweg.flow.kernels.ddim import DDIM
from thalweg.flow.kernels.dpm_sde import DPMSolverSDE
from thalweg.flow.kernels.flow_sde import FlowSDE
from thalweg.flow.kernels.learned_variance import LearnedVariance
from thalweg.flow.kernels.linear_sde import LinearSDE
from thalweg.flow.kernels.precise import Precise
from thalweg.flow.kernels.step_sde import StepSDE

Kernel = Annotated[
    SerializeAsAny[
        Annotated[
            FlowSDE
            | DanceSDE
            | LinearSDE
            | StepSDE
            | CPS
            | Precise
            | DancePrecise
            | DPMSolverSDE
            | DDIM
            | LearnedVariance,
            Field(discriminator="kind"),
        ]
    ],
    OWN_PART,
]

__all__ = [
    "CPS",
    "DDIM",
    "DPMSolverSDE",
    "DancePrecise",
    "DanceSDE",
    "FlowSDE",
    "Kernel",
    "LearnedVariance",
    "LinearSDE",
    "Precise",
    "StepSDE",
]
