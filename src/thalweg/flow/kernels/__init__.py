"""Stochastic kernels: each gives a step its two numbers, k and std (`flow/gaussian.py` has the rest)."""

from typing import Annotated

from pydantic import Field, SerializeAsAny

from thalweg.core.part import OWN_PART
from thalweg.flow.kernels.cps import CPS
from thalweg.flow.kernels.dance_sde import DanceSDE
from thalweg.flow.kernels.dpm_sde import DPMSolverSDE
from thalweg.flow.kernels.flow_sde import FlowSDE
from thalweg.flow.kernels.precise import Precise

Kernel = Annotated[
    SerializeAsAny[Annotated[FlowSDE | DanceSDE | CPS | Precise | DPMSolverSDE, Field(discriminator="kind")]],
    OWN_PART,
]

__all__ = ["CPS", "DPMSolverSDE", "DanceSDE", "FlowSDE", "Kernel", "Precise"]
