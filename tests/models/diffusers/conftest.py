"""Real families at toy size, offline; left out where diffusers is not installed."""

from importlib.util import find_spec

if find_spec("diffusers") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from models.diffusers.stock import quiet, stock_run, tiny_folder, tiny_policy_of

    quiet()
    __all__ = ["stock_run", "tiny_folder", "tiny_policy_of"]
