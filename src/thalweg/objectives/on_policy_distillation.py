"""Several teachers into one student, at the student's own states: Flow-OPD (2026, arXiv:2605.08063;
CostaliyA/Flow-OPD, "gkd") and DiffusionOPD (verl-project/verl-omni).

    L = w <(μ_θ - μ_T)²> / (2 s²) + β <(μ_θ - μ_A)²> / (2 s²)

the divergence of a drawn step from that of the teacher T of its prompt, and from that of an anchor A that
knows no task. Differs from the code: s is the standard deviation of the step, √Δσ included, as verl-omni has
it; there is no form that also scores log-probs by the divergence ("kl_only"). All teachers are evaluated at
all rows. Shapes: B rows, ... latent axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.forest import Advantages, Forest
from thalweg.core.part import Part
from thalweg.core.values import Prompt, Transitions
from thalweg.objectives.contract import Scalars, Unit
from thalweg.objectives.path_rows import transitions
from thalweg.objectives.ratio import transition_of


class Teacher(Part):
    """Whom the student asks about which prompts."""

    weights: str
    """The named weights that teach."""
    tasks: tuple[str, ...] = ()
    """Prompts whose metadata has one of these as `task`; empty: all that no teacher before has taken."""
    weight: PositiveFloat = 1.0
    """w: of its prompts in the loss."""


class OnPolicyDistillation(Part):
    """One loss term a trained step."""

    kind: Literal["on_policy_distillation"] = "on_policy_distillation"
    teachers: tuple[Teacher, ...]
    """Asked in this order."""
    anchor_weight: float = Field(default=0.0, ge=0)
    """β; 0 spares the anchor's passes (the authors: 0.04)."""
    anchor: str = "reference"
    """Named weights of the task-agnostic anchor A."""

    @model_validator(mode="after")
    def _taught(self) -> "OnPolicyDistillation":
        if not self.teachers:
            raise ValueError("teachers: empty, so there is nothing to learn; give at least one")
        for teacher in self.teachers[:-1]:
            if not teacher.tasks:
                raise ValueError(
                    f"teachers: '{teacher.weights}' takes all prompts, so nobody asks those after it; give "
                    "it tasks, or put it last"
                )
        return self

    @property
    def unit(self) -> Unit:
        return "row"

    @property
    def anchors(self) -> tuple[str, ...]:
        every = [teacher.weights for teacher in self.teachers]
        return tuple(dict.fromkeys([*every, self.anchor] if self.anchor_weight > 0 else every))

    def teacher_of(self, prompt: Prompt) -> int:
        """The number of the teacher who is asked about a prompt."""
        task = prompt.metadata.get("task")
        for number, teacher in enumerate(self.teachers):
            if not teacher.tasks or task in teacher.tasks:
                return number
        raise UserError(
            f"objective.teachers: nobody teaches the task '{task}' of prompt '{prompt.text}'; give a last "
            "teacher without tasks, or leave such prompts out"
        )

    def experience(self, forest: Forest, advantages: Advantages, *, seed: int, iteration: int) -> Transitions:
        rows = transitions(forest, advantages)
        teachers = torch.tensor([self.teacher_of(prompt) for prompt in forest.prompts])
        weights = torch.tensor([teacher.weight for teacher in self.teachers])
        asked = teachers[rows.condition]
        return replace(rows, teacher=asked, weight=rows.weight * weights[asked])

    def inputs(self, rows: Transitions) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        return rows.x, rows.sigma

    def measure(
        self,
        rows: Transitions,
        x: Float[Tensor, "B ..."],
        velocity: Float[Tensor, "B ..."],
        anchors: Mapping[str, Float[Tensor, "B ..."]],
    ) -> Scalars:
        assert rows.teacher is not None
        now = transition_of(rows, velocity)
        every = [now.kl(transition_of(rows, anchors[teacher.weights])) for teacher in self.teachers]
        asked = rows.teacher.to(every[0].device)
        scalars = {"teacher_kl": torch.stack(every, 1).gather(1, asked[:, None])[:, 0]}
        if self.anchor_weight > 0:
            scalars["kl"] = now.kl(transition_of(rows, anchors[self.anchor]))
        return scalars

    def loss(
        self, scalars: Scalars, rows: Transitions
    ) -> tuple[Float[Tensor, " U"], dict[str, Float[Tensor, " U"]]]:
        terms = scalars["teacher_kl"] * rows.weight
        if "kl" in scalars:
            terms = terms + self.anchor_weight * scalars["kl"] * rows.weight
        return terms, {name: u.detach() for name, u in scalars.items()}
