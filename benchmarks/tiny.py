"""The tests' tiny pipelines of real families, for measurements that need no weights."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from models.diffusers.builders import TINY
from models.diffusers.stock import model_of, quiet

quiet()


def saved(name: str, folder: Path) -> dict[str, Any]:
    """Overrides that put the tiny family, saved in the folder, in the place of a recipe's model."""
    path = folder / name
    if not path.exists():
        TINY[name].build().save_pretrained(path)
    model = model_of(name).model_dump(mode="json", exclude={"path"})
    return {"model": str(path)} | {f"model.{key}": value for key, value in model.items() if value is not None}
