"""PickScore and CLIPScore on a tiny random CLIP, saved to a folder as its authors would."""

import math

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rewards import open_rewards, score
from thalweg.rewards.clip_similarity import load_clip
from thalweg.rewards.clipscore import CLIPScore
from thalweg.rewards.pickscore import PickScore

transformers = pytest.importorskip("transformers")

from models.diffusers import tokenizers  # noqa: E402  needs transformers

SIZE = 16
PROMPTS = [Prompt("a fox"), Prompt("two houses by the sea"), Prompt("a harbour at night " * 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = tokenizers.clip()
    common = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **common,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**common, "image_size": SIZE, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    path = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    crop = {"height": SIZE, "width": SIZE}
    transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop).save_pretrained(path)
    return path


def images_of(*sides):
    return torch.rand(3, 3, *sides, generator=torch.Generator().manual_seed(1))


def by_hand(folder, images):
    """Cosines from the parts of the model, one sample at a time, with the preprocessor on PIL images."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    preprocess = transformers.CLIPImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cosines = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        tokens = tokenizer(prompt.text, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            seen = preprocess(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
            f = model.visual_projection(model.vision_model(seen).pooler_output)[0]
            g = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        cosines.append(float(f @ g / (f.norm() * g.norm())))
    return torch.tensor(cosines)


@pytest.mark.parametrize("sides", [(16, 16), (40, 40), (48, 33), (9, 12)])
def test_clipscore_is_the_cosine_and_pickscore_scales_it(folder, sides):
    images = images_of(*sides)
    expected = by_hand(folder, images)
    assert expected.std() > 0.01
    rewards = [CLIPScore(model=str(folder)), PickScore(model=str(folder), batch=2)]
    got = score(rewards, images, PROMPTS)
    # 8-bit rounding in the preprocessor; exp(2.6592) = 1/0.07 is the scale of a fresh CLIP.
    assert_close(got["clipscore"], expected, atol=2e-3, rtol=0)
    assert_close(got["pickscore"], math.exp(2.6592) * got["clipscore"], atol=1e-4, rtol=1e-4)


def test_the_scores_do_not_depend_on_the_batch_and_follow_their_samples(folder):
    images = images_of(20, 20)
    whole = PickScore(model=str(folder)).score(images, PROMPTS)
    assert_close(PickScore(model=str(folder), batch=1).score(images, PROMPTS), whole)
    assert_close(PickScore(model=str(folder)).score(images.flip(0), PROMPTS[::-1]), whole.flip(0))
    assert len(PickScore(model=str(folder)).score(images[:0], [])) == 0


@pytest.mark.parametrize("kind", [CLIPScore, PickScore])
def test_the_gradient_to_the_image_is_that_of_the_score(folder, kind):
    reward, images = kind(model=str(folder)), 0.25 + 0.5 * images_of(16, 16)
    assert reward.differentiable and not reward.score(images, PROMPTS).requires_grad
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, PROMPTS).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        up, down = (reward.score(images + step * direction, PROMPTS).double().sum() for step in (1e-3, -1e-3))
    assert_close((up - down) / 2e-3, (gradient * direction).sum().double(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("model", ["no-one/nothing", "missing"])
@pytest.mark.parametrize("kind", [CLIPScore, PickScore])
def test_weights_that_are_not_there_are_one_clear_line(kind, model):
    with pytest.raises(UserError, match=f"no CLIP model at model='{model}'.*give its folder") as refused:
        open_rewards([kind(model=model)], [])
    assert "\n" not in str(refused.value)


def test_another_model_and_one_without_all_weights_are_refused(folder, tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is a 'bert' model; give a CLIP model"):
        PickScore(model=str(tmp_path / "bert")).open()
    from safetensors.torch import load_file, save_file

    lame = tmp_path / "lame"
    lame.mkdir()
    for file in folder.iterdir():
        (lame / file.name).write_bytes(file.read_bytes())
    tensors = load_file(lame / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, lame / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, such as 'text_projection\.weight'"):
        load_clip(str(lame), "cpu", "clipscore")


def test_a_pickled_model_is_not_read(folder, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save(transformers.CLIPModel.from_pretrained(folder).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="no CLIP model"):
        load_clip(str(pickled), "cpu", "pickscore")
