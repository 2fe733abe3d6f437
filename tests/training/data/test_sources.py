"""Files and datasets of prompts, and what is wrong with them."""

import json
import re

import pytest
from PIL import Image

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.training.data.prompts import Data, PromptStream, draw_prompts, load_prompts, open_prompts
from thalweg.training.data.sources import Source
from thalweg.training.recipe.load import load_recipe

ROWS = [
    {"text": "a fox", "task": "animals", "negative_prompt": "blurry"},
    {"text": "a house", "task": "buildings", "negative_prompt": None},
    {"text": "a harbour", "task": "places", "negative_prompt": "dark"},
]
EXPECTED = (
    Prompt("a fox", {"task": "animals", "negative_prompt": "blurry"}),
    Prompt("a house", {"task": "buildings"}),
    Prompt("a harbour", {"task": "places", "negative_prompt": "dark"}),
)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path, rows):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def saved_dataset(path, rows):
    pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(path)
    return str(path)


def saved_splits(path, rows):
    datasets = pytest.importorskip("datasets")
    splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    datasets.DatasetDict(splits).save_to_disk(path)
    return str(path)


def folder_of_files(path, rows):
    pytest.importorskip("datasets")
    path.mkdir()
    write_lines(path / "train.jsonl", rows)
    return str(path)


SOURCES = {
    "jsonl": ("p.jsonl", write_lines),
    "parquet": ("p.parquet", write_parquet),
    "dataset": ("dataset", saved_dataset),
    "splits": ("splits", saved_splits),
    "folder": ("folder", folder_of_files),
}


@pytest.mark.parametrize(("name", "write"), SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_source_gives_the_same_prompts(name, write, streaming, tmp_path):
    source = write(tmp_path / name, ROWS)
    if streaming:
        stream = open_prompts(Data(prompts=source, streaming=True, shuffle_buffer=2), None)
        assert isinstance(stream, PromptStream)
        assert stream.head(5) == EXPECTED
        assert {stream.at(place, 0).text for place in range(3)} == {"a fox", "a house", "a harbour"}
    else:
        assert load_prompts(source, None) == EXPECTED


def test_a_column_of_another_name_and_another_split_may_hold_the_text(tmp_path):
    source = saved_splits(tmp_path / "d", [{"caption": "a fox"}, {"caption": "a house"}])
    assert load_prompts(source, None, split="test", text_column="caption") == (Prompt("a fox"),)
    lines = write_lines(tmp_path / "p.jsonl", [{"caption": "a fox", "text": "other"}])
    assert load_prompts(lines, None, text_column="caption") == (Prompt("a fox", {"text": "other"}),)


def test_paths_of_media_are_relative_to_their_file(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "pictures" / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"video")
    rows = [{"text": "make it blue", "image": "pictures/a.png", "video": "a.mp4"}]
    expected = {"image": str(tmp_path / "pictures" / "a.png"), "video": str(tmp_path / "a.mp4")}
    assert load_prompts(write_lines(tmp_path / "p.jsonl", rows), None)[0].metadata == expected
    assert load_prompts(write_parquet(tmp_path / "p.parquet", rows), None)[0].metadata == expected


def a_fox(**columns):
    return {"text": "a fox", **columns}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([a_fox(), {"text": "  "}], "p.jsonl:2: the prompt 'text' is empty"),
        ([a_fox(), {"caption": "a fox"}], "p.jsonl:2: a prompt is an object with a string 'text'"),
        ([a_fox(image="none.png")], "p.jsonl:1: image 'none.png': no such file in "),
        ([a_fox(audio="none.wav")], "p.jsonl:1: audio 'none.wav': no such file in "),
        ([a_fox(), a_fox(image="broken.png")], "p.jsonl:2: image 'broken.png' cannot be read"),
        ([a_fox(), a_fox(image="torn.png")], "p.jsonl:2: image 'torn.png' cannot be read"),
        ([a_fox(image=3)], "p.jsonl:1: image is no path"),
        ([a_fox(negative_prompt=3)], "p.jsonl:1: negative_prompt=3 is no string"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_fault_is_named_by_its_line(rows, words, streaming, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    Image.effect_noise((32, 32), 9).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    source = write_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        open_prompts(Data(prompts=source, streaming=streaming), None)
    assert "\n" not in str(refused.value)


def test_a_parquet_file_or_dataset_that_cannot_be_read_is_named(tmp_path):
    broken = tmp_path / "p.parquet"
    broken.write_text("no parquet")
    with pytest.raises(UserError, match=r"p\.parquet': cannot be read as parquet"):
        load_prompts(str(broken), None)
    written = write_parquet(tmp_path / "q.parquet", [{"caption": "a fox"}])
    with pytest.raises(UserError, match=r"no column 'text' \(there are caption\); give data\.text_column"):
        load_prompts(written, None)
    with pytest.raises(UserError, match="has the splits train, test and no 'validation'"):
        load_prompts(saved_splits(tmp_path / "d", ROWS), None, split="validation")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no dataset can be read there") as refused:
        load_prompts(str(tmp_path / "nothing"), None)
    assert "\n" not in str(refused.value)


def test_a_dataset_of_the_hub_without_network_is_one_clear_line(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'no-one/nothing': no dataset can be read there") as refused:
        load_prompts("no-one/nothing", None)
    assert "\n" not in str(refused.value)


def test_images_inside_a_dataset_are_refused_with_a_way_out(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["a fox"], "image": [Image.new("RGB", (4, 4))]}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="d:1: image is no path; save the image as a file and give its path"):
        load_prompts(str(tmp_path / "d"), None)


class TestStream:
    def stream(self, tmp_path, count=10, buffer=4):
        source = tmp_path / "p.txt"
        source.write_text("".join(f"{n}\n" for n in range(count)))
        return PromptStream(Source(name=str(source)), buffer)

    def drawn(self, stream, start, stop, seed=0):
        return [int(stream.at(place, seed).text) for place in range(start, stop)]

    def test_a_buffer_is_drawn_to_its_end_in_an_order_of_the_seed(self, tmp_path):
        drawn = self.drawn(self.stream(tmp_path), 0, 20)
        buffers = [drawn[:4], drawn[4:8], drawn[8:10], drawn[10:14], drawn[14:18], drawn[18:]]
        full = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert [sorted(buffer) for buffer in buffers] == full + full
        assert drawn[:10] != drawn[10:]
        assert drawn != self.drawn(self.stream(tmp_path), 0, 20, seed=1)

    def test_a_resumed_run_goes_on_with_the_same_prompts(self, tmp_path):
        whole = self.drawn(self.stream(tmp_path), 0, 40)
        assert self.drawn(self.stream(tmp_path), 23, 40) == whole[23:]
        stream = self.stream(tmp_path)
        assert self.drawn(stream, 30, 40) + self.drawn(stream, 0, 10) == whole[30:] + whole[:10]

    def test_an_iteration_draws_its_prompts_from_the_stream(self, tmp_path):
        stream, data = self.stream(tmp_path), Data(prompts_per_iteration=3, streaming=True)
        texts = [p.text for i in range(4) for p in draw_prompts(stream, data, 0, i)]
        assert texts == [str(n) for n in self.drawn(self.stream(tmp_path), 0, 12)]

    def test_no_more_is_read_than_a_buffer(self, tmp_path):
        source = tmp_path / "p.jsonl"
        source.write_text('{"text": "a"}\n{"text": "b"}\n{"text": ""}\n')
        stream = PromptStream(Source(name=str(source)), 2)
        assert {stream.at(0, 0).text, stream.at(1, 0).text} == {"a", "b"}
        with pytest.raises(UserError, match=r"p\.jsonl:3"):
            stream.at(2, 0)


def test_a_stream_refuses_what_needs_all_prompts(tmp_path):
    with pytest.raises(UserError) as refused:
        load_recipe("flow-grpo", ["data.streaming=true", "evaluation.prompts=data"])
    assert str(refused.value).count("data.streaming") == 2
    assert "evaluation.num_prompts: none" in str(refused.value)
