"""Tiny random pipelines of real families, built offline: the architecture is theirs, the sizes are not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from PIL import Image
from torch import nn

from models.diffusers import tokenizers

SIZE = 32


@dataclass(frozen=True)
class Tiny:
    """A pipeline, and the settings of `DiffusersModel` that suit it."""

    build: Callable[[], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    stock_is_wrong_in_batches: bool = False
    """Padding of the shorter prompt reaches its sample, or a part takes a batch of one only."""


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


def qwen_image_edit(plus: bool = False) -> Any:
    """Needs torchvision. The pipelines resize to 1024 x 1024 pixels whatever they are asked; here to 32 x
    32.
    """
    pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: (SIZE, SIZE, None)
    pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = SIZE * SIZE
    pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE = 56 * 56
    text_to_image = qwen_image()
    parts = {name: getattr(text_to_image, name) for name in text_to_image.components}
    sizes = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=sizes),
        tokenizer=text_to_image.tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=tokenizers.CHAT,
    )
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    return kind(processor=processor, **parts)


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


def wan_tokens_with_levels() -> Any:
    """Wan 2.2 TI2V: every token has a noise level."""
    tokenizer = tokenizers.t5()
    return diffusers.WanPipeline(
        transformer=_wan_network(in_channels=48, out_channels=48),
        scheduler=flow(shift=3.0),
        vae=diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=48,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            is_residual=True,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            scale_factor_spatial=16,
            scale_factor_temporal=4,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        ),
        text_encoder=t5_encoder(tokenizer, kind="UMT5"),
        tokenizer=tokenizer,
        expand_timesteps=True,
    )


def wan_from_image() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.WanImageToVideoPipeline(
        transformer=_wan_network(in_channels=36, image_dim=8),
        scheduler=flow(shift=3.0),
        vae=_wan_vae(),
        text_encoder=t5_encoder(tokenizer, kind="UMT5"),
        tokenizer=tokenizer,
        image_encoder=transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
            )
        ),
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )


def kontext() -> Any:
    return flux(diffusers.FluxKontextPipeline)


def _flux2_parts(guidance_embeds: bool) -> dict[str, Any]:
    return {
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=96,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
        ),
    }


def flux2() -> Any:
    tokenizer = tokenizers.qwen(padding_side="left")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **text_sizes(tokenizer, layers=3)},
        vision_config={"model_type": "pixtral", **vision, "head_dim": 8, "image_size": 32, "patch_size": 8},
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
    )
    return diffusers.Flux2Pipeline(
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
        **_flux2_parts(guidance_embeds=True),
    )


def flux2_klein() -> Any:
    tokenizer = tokenizers.qwen()
    return diffusers.Flux2KleinPipeline(
        text_encoder=transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**text_sizes(tokenizer, layers=3))
        ),
        tokenizer=tokenizer,
        **_flux2_parts(guidance_embeds=False),
    )


def stable_audio() -> Any:
    tokenizer = tokenizers.gemma()
    sizes = {**text_sizes(tokenizer), "hidden_size": 16, "query_pre_attn_scalar": 8}
    text = transformers.T5GemmaConfig(
        encoder=sizes, decoder=sizes, is_encoder_decoder=False, vocab_size=len(tokenizer)
    )
    return diffusers.StableAudio3Pipeline(
        transformer=diffusers.StableAudio3DiTModel(
            io_channels=8,
            embed_dim=32,
            depth=2,
            num_heads=4,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=9,
            timestep_features_dim=16,
            num_memory_tokens=4,
        ),
        scheduler=flow(num_train_timesteps=1),
        vae=diffusers.AutoencoderSAME(
            audio_channels=2,
            patch_size=16,
            encoder_channels=16,
            encoder_c_mults=(1,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=8,
            dim_heads=8,
            sampling_rate=320,
        ),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
        text_encoder=transformers.T5GemmaEncoderModel(text),
        tokenizer=tokenizer,
    )


def ltx2() -> Any:
    tokenizer = tokenizers.gemma()
    text = {**text_sizes(tokenizer), "hidden_size": 16, "sliding_window": 64}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return diffusers.LTX2Pipeline(
        transformer=diffusers.LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=4,
            audio_out_channels=4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=2,
            caption_channels=16,
            rope_double_precision=False,
            rope_type="split",
        ),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=diffusers.AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
        ),
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4,
            ch_mult=(1, 1, 1),
            num_res_blocks=1,
            latent_channels=2,
            mel_bins=8,
            resolution=32,
        ),
        text_encoder=transformers.Gemma3ForConditionalGeneration(
            transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        ),
        tokenizer=tokenizer,
        connectors=LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=3,
            video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=4,
            audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=4,
            rope_double_precision=False,
            rope_type="split",
        ),
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3]],
        ),
    )


def hunyuan_video() -> Any:
    tokenizer, letters = tokenizers.qwen(), transformers.ByT5Tokenizer()
    text = qwen_vl(tokenizer).config.text_config
    return diffusers.HunyuanVideo15Pipeline(
        transformer=diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_refiner_layers=1,
            text_embed_dim=32,
            text_embed_2_dim=32,
            image_embed_dim=12,
            rope_axes_dim=(4, 6, 6),
            target_size=32,
            task_type="t2v",
        ),
        scheduler=flow(shift=3.0),
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16, 16, 16, 16),
            layers_per_block=1,
        ),
        text_encoder=transformers.Qwen2_5_VLTextModel(text),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(letters),
        tokenizer_2=letters,
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )


def longcat_audio() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.LongCatAudioDiTPipeline(
        transformer=diffusers.LongCatAudioDiTTransformer(
            dit_dim=64, dit_depth=2, dit_heads=4, dit_text_dim=32, latent_dim=8
        ),
        scheduler=flow(invert_sigmas=True),
        vae=diffusers.LongCatAudioDiTVae(
            channels=8,
            c_mults=[1, 1],
            strides=[2],
            latent_dim=8,
            encoder_latent_dim=16,
            downsampling_ratio=2,
            sample_rate=16,
        ),
        text_encoder=t5_encoder(tokenizer, kind="UMT5"),
        tokenizer=tokenizer,
    )


def ace_step() -> Any:
    tokenizer = tokenizers.qwen()
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
    return diffusers.AceStepPipeline(
        transformer=AceStepTransformer1DModel(
            hidden_size=32, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, **sizes
        ),
        condition_encoder=AceStepConditionEncoder(
            hidden_size=32,
            text_hidden_dim=32,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            **sizes,
        ),
        scheduler=flow(num_train_timesteps=1),
        vae=diffusers.AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 2],
            decoder_channels=8,
            decoder_input_channels=8,
            sampling_rate=16,
        ),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
    )


def chroma() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=flow(shift=3.0),
        vae=image_vae(),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def aura_flow() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.AuraFlowPipeline(
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pos_embed_max_size=256,
        ),
        scheduler=flow(shift=1.7),
        vae=image_vae(),
        text_encoder=t5_encoder(tokenizer, kind="UMT5"),
        tokenizer=tokenizer,
    )


def lumina2() -> Any:
    tokenizer = tokenizers.gemma()
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=16,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(512, 32, 32),
            cap_feat_dim=32,
        ),
        scheduler=flow(shift=6.0),
        vae=image_vae(),
        text_encoder=transformers.Gemma2Model(transformers.Gemma2Config(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
    )


def ltx() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.LTXPipeline(
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            encoder_causal=True,
            decoder_causal=False,
        ),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def anima() -> Any:
    """Only modular."""
    tokenizer, t5 = tokenizers.qwen(), tokenizers.t5()
    pipeline = diffusers.AnimaModularPipeline()
    pipeline.update_components(
        transformer=diffusers.CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2.0,
            text_embed_dim=32,
            adaln_lora_dim=8,
            max_size=(4, 32, 32),
            concat_padding_mask=False,  # all zeros in Anima, and resized by torchvision
            extra_pos_embed_type=None,
        ),
        text_conditioner=diffusers.AnimaTextConditioner(
            source_dim=32,
            target_dim=32,
            model_dim=32,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=len(t5),
            min_sequence_length=16,
        ),
        scheduler=flow(shift=3.0),
        vae=qwen_image().vae,
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
        t5_tokenizer=t5,
    )
    return pipeline


def qwen3_vl(tokenizer: Any, kind: str = "Model", layers: int = 2) -> Any:
    """`kind` is Model or ForConditionalGeneration."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen3VLConfig(
        text_config={**text_sizes(tokenizer, layers), "rope_parameters": rotary, "pad_token_id": 0},
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 37,
            "num_heads": 4,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return getattr(transformers, f"Qwen3VL{kind}")(config)


def processor(tokenizer: Any) -> Any:
    """Holds a tokenizer as Qwen3-VL's does, which cannot be built without torchvision."""
    sizes = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(**sizes),
        tokenizer=tokenizer,
        chat_template=tokenizers.CHAT,
    )


def prompt_writer(tokenizer: Any) -> Any:
    """Qwen3.5, which rewrites prompts for FLUX.3."""
    linear = {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")}
    linear |= {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 37, "num_heads": 4, "out_hidden_size": 32}
    return transformers.Qwen3_5ForConditionalGeneration(
        transformers.Qwen3_5Config(
            text_config={
                **text_sizes(tokenizer),
                **linear,
                "layer_types": ["linear_attention", "full_attention"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
                "max_position_embeddings": 8192,
            },
            vision_config=vision,
        )
    )


def flux3_rewriting() -> Any:
    """With the model that rewrites prompts."""
    pipeline, tokenizer = flux3(), tokenizers.qwen()
    pipeline.update_components(
        prompt_upsampler=prompt_writer(tokenizer), prompt_upsampler_processor=processor(tokenizer)
    )
    return pipeline


def flux3(pipeline: str = "Flux3ModularPipeline", flow_map: bool = False) -> Any:
    """Only modular, without the model that rewrites prompts."""
    tokenizer, built = tokenizers.qwen(), getattr(diffusers, pipeline)()
    built.update_components(
        transformer=diffusers.Flux3Transformer2DModel(
            in_channels=16,
            cond_in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            flow_map=flow_map,
        ),
        vae=_flux2_parts(guidance_embeds=False)["vae"],
        text_encoder=qwen3_vl(tokenizer, "ForConditionalGeneration"),
        tokenizer=processor(tokenizer),
    )
    return built


def qwen_image21() -> Any:
    tokenizer, built = tokenizers.qwen(), diffusers.QwenImage21ModularPipeline()
    built.update_components(
        transformer=diffusers.QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            scale_factor_spatial=4,
        ),
        text_encoder=qwen3_vl(tokenizer, "ForConditionalGeneration"),
        processor=processor(tokenizer),
    )
    return built


def krea2(pipeline: str = "Krea2ModularPipeline") -> Any:
    tokenizer, built = tokenizers.qwen(), getattr(diffusers, pipeline)()
    built.update_components(
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            timestep_embed_dim=16,
            text_hidden_dim=32,
            num_text_layers=12,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=37,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_image().vae,
        text_encoder=qwen3_vl(tokenizer, layers=36),
        tokenizer=tokenizer,
    )
    return built


def ideogram4() -> Any:
    tokenizer, built = tokenizers.qwen(), diffusers.Ideogram4ModularPipeline()

    def network() -> Any:
        return diffusers.Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=48,
            adaln_dim=16,
            llm_features_dim=13 * 32,
            mrope_section=(4, 2, 2),
        )

    built.update_components(
        transformer=network(),
        unconditional_transformer=network(),
        scheduler=flow(),
        vae=_flux2_parts(guidance_embeds=False)["vae"],
        text_encoder=qwen3_vl(tokenizer, layers=36),
        tokenizer=tokenizer,
    )
    return built


def ltx25() -> Any:
    classic, built = ltx2(), diffusers.LTX25ModularPipeline()
    guidance = {"stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7}
    built.update_components(
        **classic.components,
        guider=diffusers.LTX2Guidance(guidance_scale=3.0, spatio_temporal_guidance_blocks=[1], **guidance),
        audio_guider=diffusers.LTX2Guidance(guidance_scale=7.0, **guidance),
        diffusion_decoder=diffusers.LTX2VideoDiffusionDecoderModel(
            latent_channels=4,
            decoder_head_dim=8,
            decoder_stage_channels=(16, 16, 16, 16, 16),
            decoder_stage_depths=(1, 1, 1, 1, 1),
            decoder_stage_kernels=((1, 1, 1),) * 4,
            decoder_stage5_kernel=(1, 3, 3),
            decoder_upsample_channel_reductions=(1, 1, 1, 1),
            decoder_t_emb_dim=16,
        ),
    )
    return built


def _unet(width: int, **options: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        norm_num_groups=4,
        **options,
    )


def ddim(**options: Any) -> diffusers.DDIMScheduler:
    """The table of Stable Diffusion 1.5, ending at the data."""
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return diffusers.DDIMScheduler(**{**table, "clip_sample": False, "steps_offset": 1, **options})


def sd15(**scheduler: Any) -> Any:
    clip = tokenizers.clip()
    return diffusers.StableDiffusionPipeline(
        unet=_unet(32, attention_head_dim=4),
        scheduler=ddim(**scheduler),
        vae=image_vae(),
        text_encoder=transformers.CLIPTextModel(clip_config(clip)),
        tokenizer=clip,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    first, second = tokenizers.clip(), tokenizers.clip()
    return diffusers.StableDiffusionXLPipeline(
        unet=_unet(
            64,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        # As it is released: another sampler over the same table.
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        vae=image_vae(),
        text_encoder=transformers.CLIPTextModel(clip_config(first)),
        tokenizer=first,
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(second)),
        tokenizer_2=second,
    )


PICTURE = {"height": SIZE, "width": SIZE, "precision": "float32", "max_sequence_length": 64}
NOISE = {"height": SIZE, "width": SIZE, "precision": "float32"}
"""Stable Diffusion's text encoders have a length of their own."""

GRADIENT = Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB")
PLAIN_LTX2 = {
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 3.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
    "use_cross_timestep": False,
}

TINY: dict[str, Tiny] = {
    "sd3": Tiny(seeded(sd3), {**PICTURE, "guidance_scale": 4.0}),
    "flux": Tiny(seeded(flux), {**PICTURE, "guidance_scale": 3.5}),
    "sana": Tiny(
        seeded(sana),
        {**PICTURE, "guidance_scale": 4.5},
        {"complex_human_instruction": None, "use_resolution_binning": False},
    ),
    "qwen_image": Tiny(
        seeded(qwen_image),
        {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 300},
        {"negative_prompt": " "},
    ),
    "z_image": Tiny(seeded(z_image), {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 128}),
    "wan": Tiny(seeded(wan), {**PICTURE, "num_frames": 5, "guidance_scale": 4.0}),
    "wan_two_networks": Tiny(
        seeded(wan_two_networks),
        {**PICTURE, "num_frames": 5, "guidance_scale": 4.0},
        {"guidance_scale_2": 3.0},
    ),
    "kontext": Tiny(
        seeded(kontext),
        {**PICTURE, "guidance_scale": 2.5},
        {"image": GRADIENT, "_auto_resize": False, "max_area": SIZE * SIZE},
    ),
    "flux2_klein": Tiny(
        seeded(flux2_klein),
        {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 128},
        {"text_encoder_out_layers": (1, 2, 3)},
    ),
    "flux2": Tiny(
        seeded(flux2),
        {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 512},
        {"text_encoder_out_layers": (1, 2, 3)},
    ),
    "wan_tokens_with_levels": Tiny(
        seeded(wan_tokens_with_levels), {**PICTURE, "num_frames": 5, "guidance_scale": 4.0}
    ),
    "wan_from_image": Tiny(
        seeded(wan_from_image), {**PICTURE, "num_frames": 5, "guidance_scale": 4.0}, {"image": GRADIENT}
    ),
    "stable_audio": Tiny(
        seeded(stable_audio), {"precision": "float32", "audio_seconds": 2.0, "guidance_scale": 3.0}
    ),
    "ltx2": Tiny(
        seeded(ltx2),
        {**PICTURE, "num_frames": 17, "guidance_scale": 3.0, "height": 128, "width": 128},
        PLAIN_LTX2,
    ),
    "hunyuan_video": Tiny(
        seeded(hunyuan_video),
        {"precision": "float32", "height": 32, "width": 32, "num_frames": 5},
        stock_is_wrong_in_batches=True,
    ),
    "longcat_audio": Tiny(
        seeded(longcat_audio),
        {"precision": "float32", "audio_seconds": 2.0, "guidance_scale": 3.0},
        stock_is_wrong_in_batches=True,
    ),
    "ace_step": Tiny(
        seeded(ace_step),
        {"precision": "float32", "audio_seconds": 4.0, "guidance_scale": 1.0},  # its guidance remembers steps
        stock_is_wrong_in_batches=True,
    ),
    # No line of ours knows these.
    "sd15": Tiny(seeded(sd15), {**NOISE, "guidance_scale": 3.0}),
    "sd15_v": Tiny(
        seeded(lambda: sd15(prediction_type="v_prediction", timestep_spacing="trailing")),
        {**NOISE, "guidance_scale": 5.0},
        {"guidance_rescale": 0.7},
    ),
    "sd15_x0": Tiny(seeded(lambda: sd15(prediction_type="sample")), {**NOISE, "guidance_scale": 1.0}),
    "sd15_zero_snr": Tiny(
        seeded(
            lambda: sd15(
                prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
            )
        ),
        {**NOISE, "guidance_scale": 5.0},
    ),
    "sdxl": Tiny(seeded(sdxl), {**NOISE, "guidance_scale": 5.0}),
    "chroma": Tiny(seeded(chroma), {**PICTURE, "guidance_scale": 3.0}),
    "aura_flow": Tiny(seeded(aura_flow), {**PICTURE, "guidance_scale": 3.0}),
    "lumina2": Tiny(seeded(lumina2), {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 200}),
    "ltx": Tiny(seeded(ltx), {**PICTURE, "num_frames": 9, "guidance_scale": 3.0}),
}
if find_spec("torchvision") is not None:
    for plus in (False, True):
        TINY["qwen_image_edit" + "_plus" * plus] = Tiny(
            seeded(partial(qwen_image_edit, plus)),
            {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 1024},
            {"image": GRADIENT, "negative_prompt": " "},
            stock_is_wrong_in_batches=True,
        )

MODULAR: dict[str, Callable[[], Any]] = {
    "anima": anima,
    "flux3": flux3,
    "flux3_rewriting": flux3_rewriting,
    "qwen_image21": qwen_image21,
    "krea2": krea2,
    "ideogram4": ideogram4,
    "ltx25": ltx25,
}
"""Pipelines that are built as modular ones."""
