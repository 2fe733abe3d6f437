"""What is written is read by others: diffusers itself, peft, and ComfyUI's rule of names and scales."""

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from models.diffusers.builders import TINY
from models.diffusers.stock import model_of
from thalweg.core.errors import UserError
from thalweg.models.diffusers.export import AsComfyUI, AsDiffusers, AsPipeline, difference, outputs
from thalweg.models.diffusers.model import Adapters
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy

FAR = Adapters(rank=2, alpha=8)
"""alpha is not the rank, so that a lost alpha is seen."""


@pytest.fixture
def trained(tmp_path):
    """A tiny family in a folder, and a policy of it whose adapters were moved."""

    def make(name, lora=FAR):
        folder = tmp_path / name
        TINY[name].build().save_pretrained(folder)
        model = model_of(name, path=str(folder), lora=lora)
        policy = DiffusersPolicy(prepare(TINY[name].build()), model)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in policy.weights.parameters.values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        return policy, model, outputs(policy)

    return make


def base_outputs(name):
    return outputs(DiffusersPolicy(prepare(TINY[name].build()), model_of(name, lora=None)))


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("sd3", FAR),
        ("flux", Adapters(rank=2, alpha=8, rslora=True)),
        ("qwen_image", Adapters(rank=2, alpha=2, dora=True)),
        ("wan_two_networks", FAR),
        ("sd15", FAR),
        ("sdxl", FAR),
        ("stable_audio", FAR),  # peft's own files
        ("longcat_audio", FAR),
        pytest.param("hunyuan_video", FAR, marks=pytest.mark.slow),  # no mixin of the pipeline
        *(
            pytest.param(name, FAR, marks=pytest.mark.slow)
            for name in (
                "z_image",
                "sana",
                "ltx2",
                "kontext",
                "flux2",
                "flux2_klein",
                "wan_from_image",
                "ltx",
            )
        ),
        *(pytest.param(name, FAR, marks=pytest.mark.slow) for name in ("chroma", "lumina2", "ace_step")),
    ],
)
def test_a_fresh_pipeline_reads_the_adapters_with_their_alpha(name, lora, trained, tmp_path):
    policy, model, expected = trained(name, lora)
    (tmp_path / "out").mkdir()
    AsDiffusers().write(policy, tmp_path / "out")
    assert difference(AsDiffusers(), model, tmp_path / "out", expected) < 1e-5
    assert (base_outputs(name) - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", ["sd3", "sdxl", "wan_two_networks", "stable_audio"])
def test_a_merged_pipeline_needs_no_adapters_and_keeps_its_own_scheduler(name, trained, tmp_path):
    policy, model, expected = trained(name)
    AsPipeline().write(policy, tmp_path / "out")
    assert difference(AsPipeline(), model, tmp_path / "out", expected) < 1e-5
    read = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert type(read.scheduler) is type(TINY[name].build().scheduler)
    assert not any("lora" in n for c in policy.networks.values() for n, _ in c.named_parameters())


@pytest.mark.parametrize(
    "name", ["sd3", "flux", "wan_two_networks", "wan_from_image", "qwen_image", "sdxl", "z_image"]
)
def test_the_layout_of_comfyui_changes_weights_by_alpha_over_rank(name, trained, tmp_path):
    policy, model, expected = trained(name, Adapters(rank=2, alpha=8, rslora=name == "flux"))
    (tmp_path / "out").mkdir()
    AsComfyUI().write(policy, tmp_path / "out")
    assert difference(AsComfyUI(), model, tmp_path / "out", expected) < 1e-5


@pytest.mark.parametrize(
    "name", ["qwen_image", "wan_two_networks", "wan_from_image", "z_image", "sd15", "sdxl"]
)
def test_diffusers_own_converters_read_the_layout_of_comfyui(name, trained, tmp_path):
    policy, model, expected = trained(
        name, Adapters(rank=2, alpha=8, targets=("to_q", "to_k", "to_v", "to_out.0"))
    )
    (tmp_path / "out").mkdir()
    first, *second = AsComfyUI().write(policy, tmp_path / "out")
    pipeline = TINY[name].build()
    pipeline.load_lora_weights(first.parent, weight_name=first.name)
    if second:
        pipeline.load_lora_weights(first.parent, weight_name=second[0].name, load_into_transformer_2=True)
    read = DiffusersPolicy(prepare(pipeline), model.model_copy(update={"lora": None}))
    assert_close(outputs(read), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        # Keys that Comfy-Org/ComfyUI, comfy/lora.py, maps for these models.
        ("sd3", "transformer.transformer_blocks.0.attn.to_q"),
        ("flux", "transformer.single_transformer_blocks.0.proj_mlp"),
        ("wan", "diffusion_model.blocks.1.cross_attn.o"),
        ("wan", "diffusion_model.blocks.0.ffn.2"),
        ("qwen_image", "diffusion_model.transformer_blocks.0.attn.add_k_proj"),
        ("sd15", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"),
        ("sdxl", "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"),
    ],
)
def test_keys_are_those_that_comfyui_knows(name, key, trained, tmp_path):
    policy, _, _ = trained(name)
    AsComfyUI().write(policy, tmp_path)
    tensors = load_file(tmp_path / "comfyui.safetensors")
    assert tensors[f"{key}.lora_down.weight"].shape[0] == 2 == tensors[f"{key}.lora_up.weight"].shape[1]
    assert float(tensors[f"{key}.alpha"]) == 8


def test_what_has_no_place_in_a_layout_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="no layout of ComfyUI's is known here for SanaPipeline; known are"):
        AsComfyUI().write(trained("sana")[0], tmp_path)
    with pytest.raises(UserError, match=r"DoRA.*use --merged"):
        AsComfyUI().write(trained("sd3", Adapters(rank=2, alpha=2, dora=True))[0], tmp_path)
    for form in (AsDiffusers(), AsComfyUI()):
        with pytest.raises(UserError, match=r"trained whole.*use --merged"):
            form.write(trained("flux", None)[0], Path(tmp_path))
