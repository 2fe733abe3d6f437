"""Attention that is noted down while samples are made, for a credit that weighs places by it.

OmniNFT (2026, arXiv:2605.12480; zghhui/OmniNFT, `V2AAttentionCollector`) asks where the sound looks: the
attention that it pays to the tokens of the video, in later blocks, from the middle of the schedule on.
"""

from pydantic import Field, model_validator

from thalweg.core.blocks import Blocks
from thalweg.core.part import Part


class Attention(Part):
    """Which modules are looked at, and at which steps. What they compute stays."""

    modules: str = Field(min_length=1)
    """Attention modules, by the ending of their names: `video_to_audio_attn`."""
    blocks: Blocks | None = None
    """First and last of the network's blocks, counted from 0; None takes all."""
    start: float = Field(default=0.5, ge=0, lt=1)
    """Share of the steps before the first one that is noted."""
    end: float = Field(default=0.9, ge=0, le=1)
    """Share of the steps before the last one that is noted."""

    @model_validator(mode="after")
    def _some(self) -> "Attention":
        if self.end < self.start:
            raise ValueError(f"end={self.end} lies before start={self.start}; give a later end")
        return self

    def acts(self, step: int, num_steps: int) -> bool:
        """Whether a step of so many is noted: from int(start N) to int(end N), both included."""
        return int(self.start * num_steps) <= step <= int(self.end * num_steps)
