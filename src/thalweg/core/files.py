"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Replace the file in one step: whenever the process dies, a reader meets the old or the new."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path
