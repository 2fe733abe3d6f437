"""Visual text: does the image show the words that the prompt quotes? As in Flow-GRPO (arXiv:2505.05470).

    r = 1 - min(d, n) / n,     d = 0 if the target stands in the recognised text, else their edit distance

n is the length of the target, the text within the first pair of double quotes of the prompt. Both texts are
lower-cased, without spaces, and what was recognised in several places is joined. Text besides the target
costs nothing once the target is there, so a run may learn to write more. Differs from the authors' code in
its engine: RapidOCR, whose wheel brings its models, in place of PaddleOCR.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.values import Prompt


class OCR(Part):
    """How much of the prompt's quoted words can be read in the image: 1 - normalised edit distance."""

    kind: Literal["ocr"] = "ocr"
    weight: float = 1.0
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.kind

    def open(self) -> Any:
        """The engine; raises UserError where it is not installed."""
        return _engine()

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        engine = self.open()
        pixels = (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        scores = []
        for image, prompt in zip(pixels, prompts, strict=True):
            # Color channels as OpenCV has them.
            found = engine(image[:, :, ::-1].copy()).txts or ()
            scores.append(agreement("".join(found), target_of(prompt)))
        return torch.tensor(scores, dtype=torch.float32)


def target_of(prompt: Prompt) -> str:
    """The text within the first pair of double quotes."""
    quoted = re.search(r'"([^"]*)"', prompt.text)
    if quoted is None or not quoted.group(1).strip():
        raise UserError(
            f"reward 'ocr': prompt '{prompt.text}' has no text within double quotes; quote the words that "
            "the image shall show"
        )
    return quoted.group(1)


def agreement(recognised: str, target: str) -> float:
    """1 - min(d, n)/n."""
    recognised, target = (re.sub(r"\s", "", text).lower() for text in (recognised, target))
    if target in recognised:
        return 1.0
    return 1 - min(edit_distance(recognised, target), len(target)) / len(target)


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that lead from a to b (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@cache
def _engine() -> Any:
    if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
        raise UserError("reward 'ocr': rapidocr is not installed; pip install 'thalweg[rewards]'")
    from rapidocr import RapidOCR

    threads = torch.get_num_threads()
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
