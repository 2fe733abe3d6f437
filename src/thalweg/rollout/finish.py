"""The last steps under other weights, MixGRPO's hybrid inference (arXiv:2507.21802; Tencent-Hunyuan/MixGRPO):
what is trained decides the content, and the untrained model finishes the texture, where rewards are hacked
first.
"""

from pydantic import PositiveInt

from thalweg.core.part import Part


class Finish(Part):
    """Which weights finish, and from where on."""

    weights: str
    """Named weights, such as a frozen `reference`."""
    steps: PositiveInt
    """How many of the last steps they take (MixGRPO: 20 of 50)."""
