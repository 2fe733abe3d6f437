"""Where a tree of a forest starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Root:
    """One initial noise of one prompt."""

    prompt_slot: int
    """Which of the iteration's prompts."""
    seed_group: int
    """Which of the prompt's initial noises."""
    number: int
    """Counts the roots of the iteration over all processes."""
    condition: int
    """Row of the prompt among those given to `grow`."""
