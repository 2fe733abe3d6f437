"""The command line: parses, calls, prints."""

from thalweg.cli.app import main

__all__ = ["main"]
