"""Encoded prompts on disk: found again by content alone, damaged entries are worked out again."""

import pytest
import torch
from PIL import Image

from models.diffusers.builders import GRADIENT, TINY
from models.diffusers.stock import PROMPTS, model_of
from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models.diffusers.embedding_cache import EmbeddingCache, key_of
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy

HALF = torch.tensor([0.5, 0.5])


@pytest.fixture
def cached(tmp_path):
    """Policies of a family that share one cache."""

    def make(name="sd3", pipeline=None, **changes):
        model = model_of(name, embedding_cache=str(tmp_path / "cache"), **changes)
        return DiffusersPolicy(prepare(pipeline or TINY[name].build()), model)

    return make


def velocity_of(policy):
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(x, HALF, policy.encode(PROMPTS))


def counts(policy):
    return policy.encoder.cache.read, policy.encoder.cache.missing, policy.encoder.cache.damaged


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "sdxl"])
def test_another_policy_reads_what_one_has_encoded(name, cached, monkeypatch):
    first, second = cached(name), cached(name)
    expected = velocity_of(first)
    assert counts(first) == (0, 2, 0)
    monkeypatch.setattr(second.encoder, "answers", lambda prompts: pytest.fail("encoded again"))
    assert torch.equal(velocity_of(second), expected)
    assert counts(second) == (2, 0, 0)


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_entry_is_counted_encoded_again_and_replaced(harm, cached, tmp_path):
    expected = velocity_of(cached())
    for entry in (tmp_path / "cache").rglob("*.safetensors"):
        entry.write_bytes(harm(entry.read_bytes()))
    second, third = cached(), cached()
    assert torch.equal(velocity_of(second), expected)
    assert counts(second) == (0, 0, 2)
    assert torch.equal(velocity_of(third), expected)
    assert counts(third) == (2, 0, 0)
    assert not list((tmp_path / "cache").rglob(".partial*"))


def test_what_an_embedding_depends_on_makes_another_entry(cached, tmp_path):
    def entries():
        return len(list((tmp_path / "cache").rglob("*.safetensors")))

    other = TINY["sd3"].build()
    with torch.no_grad():
        other.text_encoder.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.01)
    for number, policy in enumerate(
        [cached(), cached(max_sequence_length=32), cached(guidance_scale=1.0), cached(pipeline=other)], 1
    ):
        policy.encode(PROMPTS[:1])
        assert entries() == number
    cached().encode(PROMPTS[:1])
    assert entries() == 4


def test_a_key_tells_images_by_their_content():
    same, other = GRADIENT.copy(), GRADIENT.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert key_of(image=GRADIENT) == key_of(image=same) != key_of(image=other)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"model\.embedding_cache='.*file': cannot be written"):
        EmbeddingCache(tmp_path / "file").put("ab", {"a": torch.zeros(1)})


def test_encoders_are_released_once_all_prompts_are_encoded_and_the_memory_is_told(cached):
    policy = cached(release_encoders=True)
    encoders = [getattr(policy.pipeline, n) for n in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    held = sum(t.numel() * t.element_size() for e in encoders for t in e.state_dict().values())
    report = policy.encode_ahead([*PROMPTS, PROMPTS[0]])
    assert report == {"prompts": 2, "memory/released_mb": held / 2**20, "read": 0, "damaged": 0}
    assert policy.pipeline.text_encoder_3 is None
    policy.encode(PROMPTS)
    with pytest.raises(UserError, match="the text encoders were released before"):
        policy.encode([Prompt("never seen")])
    assert cached().encode_ahead(PROMPTS) == {}


@pytest.mark.parametrize("name", ["kontext", "wan_from_image", "qwen_image_edit_plus"])
def test_a_condition_image_goes_through_the_vae_once(name, tiny_policy_of, monkeypatch, tmp_path):
    if name not in TINY:
        pytest.skip("needs torchvision")
    policy = tiny_policy_of(name)
    encoded = []
    original = type(policy.pipeline.vae).encode
    monkeypatch.setattr(
        type(policy.pipeline.vae),
        "encode",
        lambda self, x, *a, **o: encoded.append(x) or original(self, x, *a, **o),
    )
    file = tmp_path / "flipped.png"
    GRADIENT.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    own = Prompt("a red square", {"image": str(file)})
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        velocities = [
            policy.velocity(x, HALF[:1], policy.encode([prompt]))
            for prompt in (*PROMPTS[:1], own)
            for _ in range(3)
        ]
    # The default image was encoded when the policy was made; an own one is met while its prompt is encoded.
    in_steps = len(encoded)
    with torch.no_grad():
        policy.velocity(x, HALF[:1], policy.encode([own]))
    assert len(encoded) == in_steps <= 3
    assert torch.equal(velocities[0], velocities[2]) and torch.equal(velocities[3], velocities[5])
    assert not torch.allclose(velocities[0], velocities[3], atol=1e-4)
