"""The estimate of a full-size run against sums by hand, and its table against networks without memory."""

import json
from importlib.util import find_spec

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.training.preflight.estimate import ATTENTION, SIZES, Size, estimate, report, size_of
from thalweg.training.recipe.load import full_size_names, load_recipe
from thalweg.training.recipe.variants import HUB

SMALL = Size(
    parameters=1e9,
    adapter_sides=1000,
    attention_sides=100,
    width=64,
    layers=10,
    frozen_parameters=2e9,
    text_tokens=44,
    channels=8,
)
"""Images of 16 x 16 pixels a token."""


def estimate_of(*changes, size=SMALL, processes=1):
    settings = (
        "model.height=160",  # 10 x 10 tokens
        "model.width=160",
        "model.guidance_scale=1.0",
        "model.lora={rank: 16, alpha: 16}",
        "model.gradient_checkpointing=false",
        "rollout.steps=5",
        "rollout.group_size=4",
        "rollout.micro_batch=1",
        "data.prompts_per_iteration=2",
        "optim.updates_per_iteration=1",
        "optim.micro_batch=2",
        "objective.kl_weight=0",
        "weights={}",
        "evaluation.weights=policy",
    )
    return estimate(load_recipe("flux1-dev/flow-grpo", [*settings, *changes]), size, processes)


def test_memory_with_adapters_is_the_sum_by_hand():
    got = estimate_of()
    assert got.tokens == 100 + 44
    assert got.frozen == (1e9 + 2e9) * 2  # bfloat16
    assert got.trained_parameters == 16 * 1000
    assert got.trained == 16 * 16_000  # weight, gradient, two moments of 4 bytes
    assert got.activations == 34 * 144 * 64 * 10 * 2  # of a micro-batch of 2
    # 8 samples, 4 of 5 steps trained: x and x_next of 100 tokens of 8 channels of 4 bytes.
    assert got.plan.stored_bytes == 8 * 4 * 2 * 100 * 8 * 4
    assert got.memory == got.frozen + got.trained + got.activations + got.plan.stored_bytes


def test_time_is_the_passes_times_what_one_costs():
    got = estimate_of()
    # 40 rollout passes; 32 with gradient: a forward, and a backward as long.
    assert got.forwards == 40 + 2 * 32
    one = 2 * 1e9 * 144 + 4 * 144**2 * 64 * 10
    assert got.flops == pytest.approx(104 * one)
    assert got.seconds(1e12) == pytest.approx(104 * one / 0.35e12)
    assert estimate_of(processes=4).flops == pytest.approx(got.flops / 4)


@pytest.mark.parametrize(
    ("change", "part", "expected"),
    [
        # Inputs of 10 layers, and one layer whole: 2 s D (10 + 17), twice for the micro-batch.
        ("model.gradient_checkpointing=true", "activations", 2 * 144 * 64 * 27 * 2),
        ("model.gradient_checkpointing=true", "forwards", 40 + 3 * 32),
        ("optim.micro_batch=1", "activations", 34 * 144 * 64 * 10),
        ("rollout.micro_batch=64", "activations", 34 * 144 * 64 * 64),  # more than the update's 2 x 10 layers
        ("model.precision=float32", "frozen", 3e9 * 4),
        ("model.precision=float32", "activations", 2 * 34 * 144 * 64 * 10 * 2),
        ("model.lora.targets=[to_q, to_v]", "trained_parameters", 1600),
        ("model.lora.targets=[to_q, proj_mlp]", "trained_parameters", 16_000),
        ("weights={old: {update: copy}, reference: {update: frozen}}", "trained", 24 * 16_000),
    ],
)
def test_each_setting_changes_its_part(change, part, expected):
    assert getattr(estimate_of(change), part) == expected


def test_training_everything_keeps_sixteen_bytes_a_parameter_and_a_longer_backward():
    got = estimate_of("model.lora=null", "model.precision=float32")
    assert (got.frozen, got.trained) == (2e9 * 4, 16e9)
    assert got.forwards == 40 + 3 * 32


def test_guidance_takes_two_passes_where_it_is_no_input():
    alone, both = estimate_of(), estimate_of("model.guidance_scale=4")
    assert both.forwards == 2 * alone.forwards and both.activations == 2 * alone.activations
    embedded = Size(**(vars(SMALL) | {"guided_by_passes": False}))
    assert estimate_of("model.guidance_scale=4", size=embedded).forwards == alone.forwards


def test_tokens_of_images_videos_and_sounds():
    def tokens(name, *changes):
        recipe = load_recipe(name, changes)
        return SIZES[name.split("/")[0]].tokens(recipe.model)  # type: ignore[arg-type]

    assert tokens("flux1-dev/flow-grpo") == 32 * 32
    assert tokens("sana/diffusion-nft") == 32 * 32
    assert tokens("wan2.1/flash-grpo") == 21 * 30 * 52  # 81 frames in 21; 480 x 832
    assert tokens("ltx-2/diffusion-nft") == 5 * 16 * 24  # 33 frames in 5; 512 x 768
    assert tokens("stable-audio-3/diffusion-nft") == 215  # 10 s


def test_the_largest_size_is_what_is_estimated():
    sizes = "data.sizes=[{height: 64, width: 64}, {height: 320, width: 160}]"
    large, sized = estimate_of("model.height=320", "model.width=160"), estimate_of(sizes)
    assert (sized.tokens, sized.memory, sized.flops) == (large.tokens, large.memory, large.flops)
    recipe = load_recipe("flux1-dev/flow-grpo", ["model.height=512", "model.width=512"])
    own = Prompt("a", {"height": 1024, "width": 512})
    assert estimate(recipe, SIZES["flux1-dev"], 1, [own]).tokens == 64 * 32 + 512


@pytest.mark.parametrize("name", full_size_names())
def test_every_full_size_recipe_can_be_estimated(name):
    recipe = load_recipe(name)
    size = size_of(recipe.model)
    assert size is SIZES[name.split("/")[0]]
    lines = report(estimate(recipe, size), recipe.iterations)
    assert "not checked on a GPU" in lines[0] and "MB" not in lines[1]
    assert [line.split(" (")[0] for line in lines[2:]] == ["24 GB", "48 GB", "80 GB", "141 GB"]


def test_another_size_of_a_family_in_a_folder_is_not_mistaken_for_the_one_in_the_table(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    for heads, known in ((12, True), (40, False)):
        config = {"num_attention_heads": heads, "attention_head_dim": 128}
        (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
        model = load_recipe("wan2.1/flow-grpo", [f"model={tmp_path}"]).model
        assert (size_of(model) is not None) == known


def test_what_does_not_split_over_processes_is_refused_in_the_estimate_too():
    with pytest.raises(UserError, match="do not split over 3 processes"):
        estimate_of(processes=3)


SD3 = {"num_attention_heads": 24, "num_layers": 24, "caption_projection_dim": 1536, "qk_norm": "rms_norm"}
KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
NETWORKS = {
    "sd15": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sdxl": ("UNet2DConditionModel", XL),
    "sd3.5-medium": (
        "SD3Transformer2DModel",
        SD3 | {"dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
    ),
    "sd3.5-large": (
        "SD3Transformer2DModel",
        SD3 | {"num_attention_heads": 38, "num_layers": 38, "caption_projection_dim": 2432},
    ),
    "flux1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2-dev": ("Flux2Transformer2DModel", {}),
    "flux2-klein": ("Flux2Transformer2DModel", KLEIN | {"guidance_embeds": False}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
    "sana": ("SanaTransformer2DModel", {}),
    "wan2.1": ("WanTransformer3DModel", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
    "wan2.2": ("WanTransformer3DModel", {}),
    "hunyuanvideo-1.5": ("HunyuanVideo15Transformer3DModel", {}),
    "ltx-2": ("LTX2VideoTransformer3DModel", {}),
    "stable-audio-3": ("StableAudio3DiTModel", {}),
}


@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")
@pytest.mark.parametrize(("name", "network"), NETWORKS.items(), ids=NETWORKS)
def test_the_table_counts_what_the_networks_hold(name, network):
    import diffusers

    from thalweg.models.diffusers.adapters import repeated_linears

    class_name, config = network
    with torch.device("meta"):
        built = getattr(diffusers, class_name)(**config)
    size, modules = SIZES[name], dict(built.named_modules())
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(size.parameters, rel=2e-3)

    def sides(names):
        return sum(modules[n].in_features + modules[n].out_features for n in names)

    linears = repeated_linears(built)
    assert sides(linears) == size.adapter_sides
    assert sides(n for n in linears if n.endswith(tuple(f".{a}" for a in ATTENTION))) == size.attention_sides


@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")
@pytest.mark.parametrize(("name", "side", "width"), [("sd15", 512, 768), ("sdxl", 1024, 2048)])
def test_a_pass_of_a_unet_costs_what_torch_counts(name, side, width):
    import diffusers
    from torch.utils.flop_counter import FlopCounterMode

    class_name, config = NETWORKS[name]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        extra = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        unet = getattr(diffusers, class_name)(**config)
        x, text = torch.zeros(1, 4, side // 8, side // 8), torch.zeros(1, 77, width)
        unet(x, torch.ones(1), text, added_cond_kwargs=extra if name == "sdxl" else None)
    settings = [f"model.height={side}", f"model.width={side}", "model.guidance_scale=1.0"]
    got = estimate(load_recipe(f"{name}/flow-grpo", settings), SIZES[name])
    assert got.flops / got.forwards == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_every_name_on_the_hub_has_its_size():
    assert set(SIZES) == set(HUB.values())
