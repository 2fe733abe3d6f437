"""A user's own reward: a plain Python function `(images, prompts) -> one number an image`.

`images` is a float tensor (B, 3, H, W) in [0, 1], `prompts` a list of `Prompt` with `.text` and `.metadata`.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import ImportString
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.values import Prompt


class FunctionReward(Part):
    """Calls a function of yours, given as `module:function`."""

    kind: Literal["function"] = "function"
    function: ImportString[Callable[..., Any]]
    """Import path; in Python also the function itself."""
    weight: float = 1.0
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.function.__name__

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        try:
            scores = self.function(images, list(prompts))
        except Exception as error:  # a user's code may raise anything, and the run must say whose it was
            raise UserError(
                f"reward '{self.name}' raised {type(error).__name__}: {error}; mend the function and "
                "resume the run"
            ) from error
        try:
            values = torch.as_tensor(scores, dtype=torch.float32).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"reward '{self.name}' returned {type(scores).__name__}, which does not read as numbers; "
                "return a list or tensor with one number an image"
            ) from error
        if values.shape != (len(images),):
            raise UserError(
                f"reward '{self.name}' returned shape {tuple(values.shape)} for {len(images)} images; "
                "return one number an image"
            )
        return values
