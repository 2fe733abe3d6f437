import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rewards import open_rewards
from thalweg.rewards.ocr import OCR, agreement, edit_distance, target_of


def picture_of(text):
    image = Image.new("RGB", (400, 128), "white")
    ImageDraw.Draw(image).text((48, 40), text, fill="black", font=ImageFont.load_default(36))
    return torch.tensor(list(image.tobytes())).view(128, 400, 3).permute(2, 0, 1) / 255


def test_text_in_an_image_is_read_for_real():
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    images = torch.stack([picture_of("RIVER"), picture_of("RIVET"), picture_of(""), picture_of("RIVER")])
    prompts = [Prompt('a sign that says "River"')] * 3 + [Prompt('a sign that says "bank"')]
    # One letter of five; nothing; no letter in its place.
    assert_close(OCR().score(images, prompts), torch.tensor([1.0, 0.8, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("recognised", "target", "expected"),
    [
        ("river", "River", 1.0),
        ("The Ri ver bank", "river", 1.0),  # other text beside it is free
        ("rivr", "river", 1 - 1 / 5),
        ("", "river", 0.0),
        ("something else altogether", "river", 0.0),  # a distance beyond the length counts as the length
        ("openaiopen", "open ai", 1.0),
        ("kitten", "sitting", 1 - 3 / 7),
    ],
)
def test_the_reward_is_one_minus_the_edit_distance_over_the_length(recognised, target, expected):
    assert agreement(recognised, target) == pytest.approx(expected)


words = st.text("abc", max_size=6)


@given(words, words, words)
def test_the_edit_distance_is_a_distance(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_a_prompt_without_quoted_words_is_refused_before_training():
    assert target_of(Prompt('"Open" above "closed"')) == "Open"
    for text in ("a sign", 'a "" sign', 'a " " sign'):
        with pytest.raises(UserError, match="has no text within double quotes; quote the words"):
            open_rewards([OCR()], [Prompt(text)])
