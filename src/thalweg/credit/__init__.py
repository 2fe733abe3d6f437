"""Which decision deserves the reward: rewards in, advantages out."""

from thalweg.credit.group import GroupCredit

Credit = GroupCredit

__all__ = ["Credit", "GroupCredit"]
