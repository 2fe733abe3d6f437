"""Reading prompts, one at a time and with their place, so that a fault is named as FILE:LINE.

A source is a .txt file (a prompt a line), a .jsonl file (an object a line), a .parquet file (a row each), or
a dataset of the `datasets` library: a folder that `save_to_disk` wrote, a folder of data files, or owner/name
on the hub. Where a source has columns, one is the text and the others are the prompt's metadata.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt

MEDIA = ("image", "video", "audio")
"""Columns that hold the path of a file, relative to the source's folder."""
SUFFIXES = (".txt", ".jsonl", ".parquet")
OTHERS = (".csv", ".tsv", ".json", ".yaml")
"""What a file that does not exist may end with; anything else may be a name on the hub."""


@dataclass(frozen=True)
class Source:
    """Where prompts are, and under which key the recipe names it."""

    name: str
    key: str = "data.prompts"
    split: str = "train"
    text_column: str = "text"
    streaming: bool = False

    @property
    def kind(self) -> Literal["lines", "parquet", "dataset"]:
        """How it is read; raises UserError where there is nothing to read."""
        path = Path(self.name)
        on_hub = not path.exists() and self.name.count("/") == 1 and path.suffix not in (*SUFFIXES, *OTHERS)
        if path.is_dir() or on_hub:
            return "dataset"
        if not path.is_file():
            raise UserError(
                f"{self.key}='{self.name}': no such file; give training, held_out, a .txt, .jsonl or "
                ".parquet file, or a dataset's folder or owner/name"
            )
        if path.suffix not in SUFFIXES:
            raise UserError(
                f"{self.key}='{self.name}': cannot read '{path.suffix}' files; give .txt or .jsonl or "
                ".parquet"
            )
        return "parquet" if path.suffix == ".parquet" else "lines"

    @property
    def folder(self) -> Path:
        """What paths in it are relative to; the working directory for a dataset of the hub."""
        path = Path(self.name)
        return path if path.is_dir() else path.parent if path.is_file() else Path()


def read_prompts(source: Source) -> Iterator[tuple[str, Prompt]]:
    """(FILE:LINE, prompt) of every prompt, in the order of the source."""
    if source.kind == "lines":
        yield from _lines(source)
        return
    rows = _parquet(source) if source.kind == "parquet" else _dataset(source)
    for number, row in enumerate(rows, 1):
        where = f"{source.name}:{number}"
        yield where, _prompt(row, source, where)


def _lines(source: Source) -> Iterator[tuple[str, Prompt]]:
    is_json = source.name.endswith(".jsonl")
    try:
        with open(source.name, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{source.name}:{number}"
                if is_json and line.strip():
                    yield where, _prompt(_object(line, where), source, where)
                elif line.strip():
                    yield where, Prompt(line.strip(), where=where)
    except UnicodeDecodeError as error:
        raise UserError(f"{source.key}='{source.name}': not UTF-8 text ({error}); save it as such") from None


def _object(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not a JSON object ({error.msg} at column {error.colno}); mend the line"
        ) from None


def _parquet(source: Source) -> Iterator[Any]:
    _require("pyarrow", source)
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(source.name)
        _require_column(source, file.schema_arrow.names)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{source.key}='{source.name}': cannot be read as parquet ({_first_line(error)}); write it again"
        ) from None


def _dataset(source: Source) -> Iterator[Any]:
    _require("datasets", source)
    import datasets
    from datasets.exceptions import DatasetsError

    path = Path(source.name)
    try:
        if path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "state.json").is_file()):
            rows: Any = datasets.load_from_disk(source.name)
        elif (path / "dataset_dict.json").is_file():
            splits: Any = datasets.load_from_disk(source.name)
            if source.split not in splits:
                raise ValueError(f"has the splits {', '.join(splits)} and no '{source.split}'")
            rows = splits[source.split]
        else:
            rows = datasets.load_dataset(source.name, split=source.split, streaming=source.streaming)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"{source.key}='{source.name}': no dataset can be read there ({_first_line(error)}); check the "
            "name, the split and the network"
        ) from None
    if rows.features is not None:
        _require_column(source, list(rows.features))
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
                rows = rows.cast_column(name, type(feature)(decode=False))
    yield from rows


def _prompt(row: Any, source: Source, where: str) -> Prompt:
    """A prompt of a row of columns, with paths made whole and their files looked at."""
    column = source.text_column
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        raise UserError(f"{where}: a prompt is an object with a string '{column}'; mend the line")
    if not row[column].strip():
        raise UserError(f"{where}: the prompt '{column}' is empty; give it words, or take the line out")
    metadata = {name: value for name, value in row.items() if name != column and value is not None}
    negative = metadata.get("negative_prompt", "")
    if not isinstance(negative, str):
        raise UserError(f"{where}: negative_prompt={negative!r} is no string; mend the line")
    for name in MEDIA:
        if name in metadata:
            metadata[name] = _file(metadata[name], name, source.folder, where)
    return Prompt(row[column], metadata, where)


def _file(value: Any, name: str, folder: Path, where: str) -> str:
    if isinstance(value, Mapping):  # a dataset's media column: the path, or the file itself
        value = value.get("path") if value.get("bytes") is None else None
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is no path; save the {name} as a file and give its path")
    path = folder / value
    if not path.is_file():
        raise UserError(f"{where}: {name} '{value}': no such file in '{folder}'; mend the path")
    if name == "image":
        try:
            with Image.open(path) as image:
                image.verify()
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError
            raise UserError(
                f"{where}: image '{value}' cannot be read ({_first_line(error)}); save it again"
            ) from None
    return str(path)


def _require_column(source: Source, columns: list[str]) -> None:
    if source.text_column not in columns:
        raise UserError(
            f"{source.key}='{source.name}': no column '{source.text_column}' (there are "
            f"{', '.join(columns)}); give data.text_column"
        )


def _require(package: str, source: Source) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"{source.key}='{source.name}': {package} is not installed; pip install 'thalweg[data]'"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
