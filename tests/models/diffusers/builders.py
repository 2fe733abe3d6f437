"""Tiny random pipelines of real families, built offline: the architecture is the family's, the sizes are not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from models.diffusers import tokenizers
from torch import nn

SIZE = 32


@dataclass(frozen=True)
class Tiny:
    """A pipeline, and the settings of `DiffusersModel` that suit it."""

    build: Callable[[], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)


def seeded(build: Callable[[], Any]) -> Callable[[], Any]:
    """The same weights every time, nothing all zero, no dropout."""

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline = build()
            for component in pipeline.components.values():
                if isinstance(component, nn.Module):
                    component.eval()
                    for parameter in component.parameters():
                        if not parameter.any():
                            nn.init.normal_(parameter, std=0.02)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


def flow(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def image_vae(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.05,
        **options,
    )


def clip_config(tokenizer: Any, projection: int = 32) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=projection,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def t5_encoder(tokenizer: Any, width: int = 32, kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def text_sizes(tokenizer: Any, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }


def qwen_vl(tokenizer: Any) -> Any:
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    sizes = text_sizes(tokenizer)
    sizes.pop("head_dim")
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config={
                **sizes,
                "rope_scaling": {"type": "default", "mrope_section": [1, 1, 2], "rope_type": "default"},
                "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e4},
                "pad_token_id": 0,
            },
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 37,
                "num_heads": 4,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
            image_token_id=ids["image_pad"],
            video_token_id=ids["video_pad"],
            vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        )
    )


def sd3() -> Any:
    first, t5 = tokenizers.clip(), tokenizers.t5()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        scheduler=flow(shift=3.0),
        vae=image_vae(),
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config(first)),
        tokenizer=first,
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(first)),
        tokenizer_2=tokenizers.clip(),
        text_encoder_3=t5_encoder(t5, 64),
        tokenizer_3=t5,
    )


def flux(pipeline: type = diffusers.FluxPipeline) -> Any:
    clip, t5 = tokenizers.clip(), tokenizers.t5()
    return pipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=image_vae(),
        text_encoder=transformers.CLIPTextModel(clip_config(clip)),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5),
        tokenizer_2=t5,
    )


def sana() -> Any:
    tokenizer = tokenizers.gemma()
    config = transformers.Gemma2Config(**text_sizes(tokenizer), attn_implementation="eager")
    config.hidden_size = 16
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
            patch_size=1,
        ),
        scheduler=flow(shift=3.0),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.4,
        ),
        text_encoder=transformers.Gemma2Model(config),
        tokenizer=tokenizer,
    )


def qwen_image() -> Any:
    tokenizer = tokenizers.qwen()
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
    )


def z_image() -> Any:
    tokenizer = tokenizers.qwen()
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[8, 4, 4],
            axes_lens=[512, 32, 32],
        ),
        scheduler=flow(shift=3.0),
        vae=image_vae(),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
    )


def _wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def _wan_network(**options: Any) -> Any:
    sizes: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return diffusers.WanTransformer3DModel(**sizes | options)


def wan() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.WanPipeline(
        transformer=_wan_network(),
        scheduler=flow(shift=3.0),
        vae=_wan_vae(),
        text_encoder=t5_encoder(tokenizer, kind="UMT5"),
        tokenizer=tokenizer,
    )


def wan_two_networks() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.WanPipeline(
        transformer=_wan_network(),
        transformer_2=_wan_network(),
        scheduler=flow(shift=3.0),
        vae=_wan_vae(),
        text_encoder=t5_encoder(tokenizer, kind="UMT5"),
        tokenizer=tokenizer,
        boundary_ratio=0.875,
    )


PICTURE = {"height": SIZE, "width": SIZE, "precision": "float32", "max_sequence_length": 64}

TINY: dict[str, Tiny] = {
    "sd3": Tiny(seeded(sd3), {**PICTURE, "guidance_scale": 4.0}),
    "flux": Tiny(seeded(flux), {**PICTURE, "guidance_scale": 3.5}),
    "sana": Tiny(
        seeded(sana),
        {**PICTURE, "guidance_scale": 4.5},
        {"complex_human_instruction": None, "use_resolution_binning": False},
    ),
    "qwen_image": Tiny(seeded(qwen_image), {**PICTURE, "guidance_scale": 3.0}, {"negative_prompt": " "}),
    "z_image": Tiny(seeded(z_image), {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 128}),
    "wan": Tiny(seeded(wan), {**PICTURE, "num_frames": 5, "guidance_scale": 4.0}),
    "wan_two_networks": Tiny(
        seeded(wan_two_networks), {**PICTURE, "num_frames": 5, "guidance_scale": 4.0}, {"guidance_scale_2": 3.0}
    ),
}
