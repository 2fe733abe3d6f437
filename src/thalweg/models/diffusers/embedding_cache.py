"""Encoded prompts on disk, by content: a run that meets them again need not encode them.

A key is the SHA-256 of everything that an embedding depends on: format of the file, class of the pipeline,
precision, arguments of its call, the prompt with its own texts and the content of its image, and the
embedding of one fixed prompt. That one is always worked out by the encoders at hand and stands for their
weights, tokenizers and templates, so a cache may be shared by models and runs. Machines whose embeddings
differ by rounding do not share entries.

An entry is one safetensors file, FOLDER/ab/abcd....safetensors, written whole or not at all, with the
SHA-256 of its tensors. A damaged one is counted, encoded again and replaced.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.files import write_whole

FORMAT = 1


@dataclass
class EmbeddingCache:
    """Named tensors by key in a folder; counts what it was asked."""

    folder: Path
    read: int = 0
    """Embeddings that were there."""
    missing: int = 0
    damaged: int = 0

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, or None where they have to be worked out."""
        path = self._path(key)
        if not path.exists():
            self.missing += 1
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                written = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError):
            written, tensors = None, {}
        if written is None or written != digest_of_tensors(tensors):
            self.damaged += 1
            return None
        self.read += 1
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of a key."""
        path = self._path(key)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(plain, {"sha256": digest_of_tensors(plain), "format": str(FORMAT)}))
        except OSError as error:
            raise UserError(
                f"model.embedding_cache='{self.folder}': cannot be written ({error}); give another "
                "folder, or none"
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(**parts: Any) -> str:
    """The key of everything named: text, numbers, images, and what holds them."""
    written = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=_described)
    return hashlib.sha256(written.encode()).hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _described(value: Any) -> Any:
    """What JSON has no word for."""
    if isinstance(value, Image.Image):
        return [value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Tensor):
        return digest_of_tensors({"": value})
    return repr(value)
