"""More tiny pipelines: classes that were tried as they are, with no code of the library for them."""

from typing import Any

import diffusers
import transformers

from models.diffusers import tokenizers
from models.diffusers.builders import (
    GRADIENT,
    PICTURE,
    SIZE,
    Tiny,
    _flux2_parts,
    _wan_vae,
    clip_config,
    flow,
    flux,
    image_vae,
    ltx,
    processor,
    qwen_vl,
    sd3,
    seeded,
    t5_encoder,
    text_sizes,
    wan,
    wan_from_image,
    z_image,
)


def _same(kind: type, pipeline: Any, **others: Any) -> Any:
    """Another pipeline class over the same components."""
    return kind(**{**pipeline.components, **others})


def cogview4() -> Any:
    tokenizer = tokenizers.t5()  # a prompt of no characters has a token still
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(transformers.GlmConfig(**text_sizes(tokenizer), pad_token_id=0)),
        vae=image_vae(),
        transformer=diffusers.CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=16,
            rope_axes_dim=(16, 16),
        ),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    )


def hidream() -> Any:
    first, t5, last = tokenizers.clip(), tokenizers.t5(), tokenizers.qwen()
    llama = transformers.LlamaConfig(**text_sizes(last), pad_token_id=0)
    pipeline = diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=image_vae(),
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config(first)),
        tokenizer=first,
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(first)),
        tokenizer_2=tokenizers.clip(),
        text_encoder_3=t5_encoder(t5),
        tokenizer_3=t5,
        text_encoder_4=transformers.LlamaForCausalLM(llama),
        tokenizer_4=last,
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=(32, 32),
            text_emb_dim=64,
            num_routed_experts=2,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
    )
    pipeline.default_sample_size = SIZE // pipeline.vae_scale_factor  # sets the area of every image
    return pipeline


def mochi() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.MochiPipeline(
        scheduler=flow(invert_sigmas=True),
        vae=diffusers.AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            latents_mean=(0.0,) * 12,
            latents_std=(1.0,) * 12,
        ),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=32,
            time_embed_dim=4,
            max_sequence_length=16,
        ),
    )


def _kandinsky_parts() -> dict[str, Any]:
    tokenizer, clip = tokenizers.qwen(), tokenizers.clip()
    return {
        "text_encoder": qwen_vl(tokenizer),
        "tokenizer": processor(tokenizer),
        "text_encoder_2": transformers.CLIPTextModel(clip_config(clip)),
        "tokenizer_2": clip,
        "scheduler": flow(shift=3.0),
    }


def _kandinsky_network(**options: Any) -> Any:
    return diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        **options,
    )


def hunyuan_vae(channels: int = 4) -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def _vae_of_eight() -> Any:
    """A latent is eight pixels wide: Kandinsky 5 has the number in its code."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )


def kandinsky_image() -> Any:
    pipeline = diffusers.Kandinsky5T2IPipeline(
        transformer=_kandinsky_network(), vae=_vae_of_eight(), **_kandinsky_parts()
    )
    pipeline.resolutions = [(SIZE, SIZE)]  # others are brought to the nearest of these
    return pipeline


def kandinsky_video() -> Any:
    return diffusers.Kandinsky5T2VPipeline(
        transformer=_kandinsky_network(visual_cond=True), vae=hunyuan_vae(), **_kandinsky_parts()
    )


def ernie() -> Any:
    tokenizer = tokenizers.qwen()
    text = transformers.MistralConfig(**text_sizes(tokenizer))
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=48,
            in_channels=16,
            out_channels=16,
            text_in_dim=32,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=_flux2_parts(guidance_embeds=False)["vae"],
        text_encoder=transformers.MistralModel(text),
        tokenizer=tokenizer,
        scheduler=flow(shift=3.0),
    )


def longcat_image() -> Any:
    tokenizer = tokenizers.qwen()
    return diffusers.LongCatImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=image_vae(16),  # the pipeline has this number in its code
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=processor(tokenizer),
        transformer=diffusers.LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def ovis() -> Any:
    tokenizer = tokenizers.qwen()
    return diffusers.OvisImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=image_vae(),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
        transformer=diffusers.OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def hunyuan_image() -> Any:
    tokenizer, letters = tokenizers.qwen(), transformers.ByT5Tokenizer()
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=5.0),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.5,
        ),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(letters),
        tokenizer_2=letters,
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=32,
            text_embed_2_dim=32,
            rope_axes_dim=(8, 8),
        ),
        guider=diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.0),
        ocr_guider=diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.0),
    )


def hunyuan_video1() -> Any:
    tokenizer, clip = tokenizers.qwen(), tokenizers.clip()
    return diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(transformers.LlamaConfig(**text_sizes(tokenizer, layers=3))),
        tokenizer=tokenizer,
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=32,
            pooled_projection_dim=32,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=hunyuan_vae(),
        scheduler=flow(shift=7.0),
        text_encoder_2=transformers.CLIPTextModel(clip_config(clip)),
        tokenizer_2=clip,
    )


def ltx_from_image() -> Any:
    return _same(diffusers.LTXImageToVideoPipeline, ltx())


def wan_vace() -> Any:
    parts = wan().components
    network = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
        vace_layers=[0],
        vace_in_channels=96,
    )
    parts |= {"transformer": network}
    return diffusers.WanVACEPipeline(
        **{n: parts[n] for n in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    )


def wan_from_video() -> Any:
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    parts = wan().components
    return diffusers.WanVideoToVideoPipeline(**{n: parts[n] for n in names})


def skyreels() -> Any:
    names = ("tokenizer", "text_encoder", "vae")
    parts = wan().components
    return diffusers.SkyReelsV2Pipeline(
        transformer=diffusers.SkyReelsV2Transformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
        **{n: parts[n] for n in names},
    )


def chronoedit() -> Any:
    parts = wan_from_image().components
    names = ("tokenizer", "text_encoder", "image_encoder", "image_processor", "vae", "scheduler")
    return diffusers.ChronoEditPipeline(
        transformer=diffusers.ChronoEditTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=32,
            image_dim=8,
        ),
        **{n: parts[n] for n in names},
    )


def _flux_network(in_channels: int) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def _of_flux(kind: type, in_channels: int) -> Any:
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = flux().components
    return kind(transformer=_flux_network(in_channels), **{n: parts[n] for n in names})


def flux_fill() -> Any:
    return _of_flux(diffusers.FluxFillPipeline, 48)


def flux_control() -> Any:
    return _of_flux(diffusers.FluxControlPipeline, 32)


def flux_from_image() -> Any:
    return _of_flux(diffusers.FluxImg2ImgPipeline, 16)


def sd3_from_image() -> Any:
    return _same(diffusers.StableDiffusion3Img2ImgPipeline, sd3())


def z_image_from_image() -> Any:
    return _same(diffusers.ZImageImg2ImgPipeline, z_image())


def bria() -> Any:
    tokenizer = tokenizers.t5()
    return diffusers.BriaPipeline(
        transformer=diffusers.BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 6, 6],
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=image_vae(),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def sana_video() -> Any:
    tokenizer = tokenizers.gemma()
    config = transformers.Gemma2Config(**text_sizes(tokenizer), attn_implementation="eager")
    config.hidden_size = 16
    return diffusers.SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(config),
        vae=_wan_vae(),
        transformer=diffusers.SanaVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=16,
            sample_size=8,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


VIDEO = {**PICTURE, "num_frames": 5}
MORE: dict[str, Tiny] = {
    "cogview4": Tiny(seeded(cogview4), {**PICTURE, "guidance_scale": 3.0}, stock_is_wrong_in_batches=True),
    "hidream": Tiny(seeded(hidream), {**PICTURE, "guidance_scale": 3.0}),
    "mochi": Tiny(
        seeded(mochi), {**PICTURE, "num_frames": 7, "guidance_scale": 3.0, "max_sequence_length": 16}
    ),
    "kandinsky_image": Tiny(
        seeded(kandinsky_image), {**PICTURE, "guidance_scale": 3.0}, stock_is_wrong_in_batches=True
    ),
    "kandinsky_video": Tiny(
        seeded(kandinsky_video), {**VIDEO, "guidance_scale": 3.0}, stock_is_wrong_in_batches=True
    ),
    "ernie": Tiny(seeded(ernie), {"precision": "float32", "height": 32, "width": 32, "guidance_scale": 3.0}),
    "longcat_image": Tiny(
        seeded(longcat_image),
        {"precision": "float32", "height": 32, "width": 32, "guidance_scale": 3.0},
        {"enable_prompt_rewrite": False},
    ),
    "ovis": Tiny(seeded(ovis), {**PICTURE, "guidance_scale": 3.0, "max_sequence_length": 256}),
    "hunyuan_image": Tiny(seeded(hunyuan_image), {"precision": "float32", "height": 32, "width": 32}),
    "hunyuan_video1": Tiny(seeded(hunyuan_video1), {**VIDEO, "guidance_scale": 3.0}),
    "ltx_from_image": Tiny(
        seeded(ltx_from_image), {**PICTURE, "num_frames": 9, "guidance_scale": 3.0}, {"image": GRADIENT}
    ),
    "wan_vace": Tiny(seeded(wan_vace), {**VIDEO, "guidance_scale": 3.0}, stock_is_wrong_in_batches=True),
    "skyreels": Tiny(seeded(skyreels), {**VIDEO, "guidance_scale": 3.0}),
    "chronoedit": Tiny(seeded(chronoedit), {**VIDEO, "guidance_scale": 3.0}, {"image": GRADIENT}),
    "flux_fill": Tiny(
        seeded(flux_fill), {**PICTURE, "guidance_scale": 3.0}, {"image": GRADIENT, "mask_image": GRADIENT}
    ),
    "flux_control": Tiny(
        seeded(flux_control),
        {**PICTURE, "guidance_scale": 3.0},
        {"control_image": GRADIENT},
        stock_is_wrong_in_batches=True,
    ),
    "bria": Tiny(seeded(bria), {**PICTURE, "guidance_scale": 3.0}),
    "sana_video": Tiny(
        seeded(sana_video),
        {"precision": "float32", "height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 64},
        {"complex_human_instruction": None, "use_resolution_binning": False, "frames": 5},
    ),
}

STARTED_FROM: dict[str, Tiny] = {
    "flux_from_image": Tiny(seeded(flux_from_image), PICTURE, {"image": GRADIENT}),
    "sd3_from_image": Tiny(seeded(sd3_from_image), PICTURE, {"image": GRADIENT}),
    "z_image_from_image": Tiny(seeded(z_image_from_image), PICTURE, {"image": GRADIENT}),
    "wan_from_video": Tiny(seeded(wan_from_video), PICTURE, {"video": [GRADIENT] * 5}),
}
"""Pipelines that start part way, from a picture that their network is not shown."""
