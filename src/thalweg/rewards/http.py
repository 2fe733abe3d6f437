"""A reward behind a URL: a judge that runs elsewhere, in any language.

A batch is one POST of JSON, and the answer is JSON:

    {"prompts": ["a fox", ...], "metadata": [{}, ...], "images": ["<PNG as base64>", ...]}
    {"scores": [0.7, ...]}

with a number for each image, or null for one that cannot be judged. What does not answer, or answers with a
status of 429 or 500 and above, is asked again after `backoff` seconds, then twice, four times as many.
"""

import base64
import io
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.part import Part
from thalweg.core.values import Prompt

BUSY = 429


class HTTPReward(Part):
    """Asks a service of yours: images and prompts as JSON to a URL, a number for each image back."""

    kind: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://")
    name: str = "http"
    """What its metrics are called; different for each of several services."""
    weight: float = 1.0
    batch: PositiveInt = 16
    """Images in a request."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for an answer."""
    retries: NonNegativeInt = 4
    """How often a request is sent again."""
    backoff: NonNegativeFloat = 1.0
    """Seconds before the first retry."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """Sent along; they stand in the run's recipe, so keep secrets out."""
    differentiable: ClassVar[bool] = False
    per_step: ClassVar[bool] = False

    def score(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " B"]:
        scores: list[float] = []
        for i in range(0, len(images), self.batch):
            few, asked = images[i : i + self.batch], prompts[i : i + self.batch]
            question = {
                "prompts": [prompt.text for prompt in asked],
                # Dates and the like of a dataset's columns go as text.
                "metadata": json.loads(json.dumps([dict(p.metadata) for p in asked], default=str)),
                "images": [base64.b64encode(png).decode() for png in as_png(few)],
            }
            scores += self._checked(self._post(json.dumps(question).encode()), len(few))
        return torch.tensor(scores, dtype=torch.float32)

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(
            self.url, body, {**self.headers, "Content-Type": "application/json"}, method="POST"
        )
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                problem = f"answered with status {error.code}"
                if error.code < 500 and error.code != BUSY:
                    break
            except (OSError, urllib.error.URLError) as error:
                reason = getattr(error, "reason", error)
                problem = f"does not answer ({reason})"
        else:
            problem += f", {self.retries + 1} times in a row"
        raise UserError(
            f"reward '{self.name}': the service at {self.url} {problem}; start it or mend the url, and resume"
        )

    def _checked(self, answer: bytes, count: int) -> list[float]:
        """The scores of an answer; null becomes NaN."""
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError):
            raise self._wrong('is no JSON object with "scores"') from None
        if not isinstance(scores, list) or len(scores) != count:
            found = f"{len(scores)} scores" if isinstance(scores, list) else type(scores).__name__
            raise self._wrong(f"has {found} for {count} images")
        return [math.nan if score is None else self._number(score) for score in scores]

    def _number(self, score: Any) -> float:
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise self._wrong(f"has the score {score!r}, which is no number")
        if not math.isfinite(score):
            raise self._wrong(f"has the score {score}; answer null for an image that cannot be judged")
        return float(score)

    def _wrong(self, problem: str) -> UserError:
        return UserError(
            f"reward '{self.name}': the answer of {self.url} {problem}; mend the service, and resume the run"
        )


def as_png(images: Float[Tensor, "B 3 H W"]) -> list[bytes]:
    """Each image as the bytes of a PNG file."""
    files = []
    for pixels in (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files
