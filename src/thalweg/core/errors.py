"""Errors a user can cause: one clear line a problem, exit code 2."""


class UserError(ValueError):
    """Something the user gave is wrong; the message names the thing, the value, the rule and the way out."""
