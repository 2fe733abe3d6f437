"""Modular pipelines behind the same seam: as their own call, as their classic twins, and trained."""

import json
import shutil
from functools import partial
from inspect import signature

import diffusers
import pytest
import torch
from torch.testing import assert_close

from cli.command import thalweg
from models.diffusers.builders import MODULAR, SIZE, TINY, flux3, seeded
from models.diffusers.stock import PROMPTS, model_of
from models.diffusers.test_training import CHEAP
from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.models.diffusers.model import Adapters, DiffusersModel
from thalweg.models.diffusers.modular import Modular
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy
from thalweg.training.folder.export import export
from thalweg.training.loop import train
from thalweg.training.recipe.load import find_recipe, load_recipe
from training.small_runs import metrics_of

__all__ = ["thalweg"]

OF = {
    "sd3": {"max_sequence_length": 64, "call": {"negative_prompt": ""}},  # it guides only where one is given
    "flux": {"max_sequence_length": 64},
    "z_image": {"max_sequence_length": 128},
    "anima": {},
    "flux3": {"call": {"text_encoder_out_layers": [1, 2]}},  # of the tiny text encoder
    "flux3_rewriting": {"call": {"text_encoder_out_layers": [1, 2], "max_new_tokens": 4}},
    "qwen_image21": {},
    "krea2": {"max_sequence_length": 256},
    "ideogram4": {"max_sequence_length": 64},
    "ltx25": {"num_frames": 17, "height": 128, "width": 128},
    "flux2": {"max_sequence_length": 512, "call": {"text_encoder_out_layers": [1, 2, 3]}},
    "flux2_klein": {"max_sequence_length": 512, "call": {"text_encoder_out_layers": [1, 2, 3]}},
    "qwen_image": {"max_sequence_length": 512, "guidance_scale": 1.0},
    "wan": {"num_frames": 5, "call": {"negative_prompt": ""}},
    "wan_two_networks": {"num_frames": 5, "call": {"negative_prompt": ""}},
    "ltx": {"num_frames": 9, "call": {"negative_prompt": ""}},
}
TWINS = {
    "sd3": {"guidance_scale": 4.0},
    "flux": {"guidance_scale": 4.0},
    "z_image": {"guidance_scale": 3.0},  # it adds s (v_pos - v_neg) to v_pos, its guider to v_neg
    "flux2_klein": {"guidance_scale": 4.0, "max_sequence_length": 512},
    "qwen_image": {"guidance_scale": 1.0, "max_sequence_length": 512},  # guided, it rescales the velocity
    "wan": {"guidance_scale": 4.0, "max_sequence_length": 512},
}
"""Families that are classic too, and the classic call that the modular one at 4.0 amounts to."""
HALF = torch.tensor([0.9, 0.4])
FEW = {"mix-grpo": {"rollout.plan.size": 1}}


@pytest.fixture
def modular_folder(tmp_path):
    """A modular repository of a tiny family, moved after it was saved."""

    def save(name):
        if name in MODULAR:
            pipeline = seeded(MODULAR[name])()
        else:
            TINY[name].build().save_pretrained(tmp_path / "classic")
            pipeline = diffusers.ModularPipeline.from_pretrained(str(tmp_path / "classic"))
            pipeline.load_components()
        pipeline.save_pretrained(str(tmp_path / "saved"), overwrite_modular_index=True)
        if (tmp_path / "classic").exists():
            shutil.rmtree(tmp_path / "classic")
        return shutil.move(tmp_path / "saved", tmp_path / f"{name} modular")

    return save


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a folder where the hub's client keeps what it has downloaded, as the repository owner/tiny."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder):
        repository, commit = tmp_path / "hub" / "models--owner--tiny", "0" * 40
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        return "owner/tiny"

    return put


def settings(name, folder, **changes):
    sides = {"height": SIZE, "width": SIZE, "precision": "float32", "guidance_scale": 4.0}
    return DiffusersModel(
        **{"path": str(folder), "lora": Adapters(rank=2, alpha=2), **sides, **OF[name], **changes}
    )


def noise_of(policy):
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["classic", "modular"])
def test_a_repository_is_found_by_its_name_on_the_hub(kind, modular_folder, hub, tmp_path):
    if kind == "classic":
        TINY["sd3"].build().save_pretrained(folder := tmp_path / "saved")
    else:
        folder = modular_folder("sd3")
    by_folder, by_name = (settings("sd3", path).load() for path in (folder, hub(folder)))
    assert isinstance(by_name.pipeline, Modular) == (kind == "modular")
    x = noise_of(by_name)
    with torch.no_grad():
        of_folder, of_name = (
            policy.velocity(x, HALF, policy.encode(PROMPTS)) for policy in (by_folder, by_name)
        )
    assert torch.equal(of_folder, of_name)


@pytest.mark.parametrize("name", TWINS)
def test_a_modular_pipeline_and_its_classic_twin_have_the_same_velocity(name, modular_folder):
    modular = settings(name, modular_folder(name)).load()
    assert isinstance(modular.pipeline, Modular)
    classic = DiffusersPolicy(prepare(TINY[name].build()), model_of(name, **TWINS[name]))
    assert modular.latent_shape == classic.latent_shape
    x = noise_of(modular)
    with torch.no_grad():
        expected = classic.velocity(x, HALF, classic.encode(PROMPTS))
        assert_close(modular.velocity(x, HALF, modular.encode(PROMPTS)), expected, atol=1e-5, rtol=1e-5)
    assert modular.passes.evaluations == classic.passes.evaluations
    made = (modular.decode(x), classic.decode(x))
    ours, theirs = (m if isinstance(m, torch.Tensor) else m.frames for m in made)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


SHORT = ("height", "width", "num_frames", "guidance_scale", "max_sequence_length", "precision")
PASSES = {"ltx25": "4", "ideogram4": "1", "flux2": "1"}
"""Of the trained network for a velocity, where guidance does not take two: LTX-2.5 has two further guides,
the other pass of Ideogram 4 is that of a network of its own, and FLUX.2 is told its guidance.
"""
SLOW = ("krea2", "ltx25")
DOCTORED = ["sd3", *(pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODULAR)]
DOCTORED += [pytest.param(name, marks=pytest.mark.slow) for name in ("flux2", "wan_two_networks", "ltx")]


@pytest.mark.parametrize(
    ("name", "classic", "strength"),
    [
        ("krea2", diffusers.Krea2Pipeline, {}),
        # A classic call takes a latent for 16 pixels, whatever the decoder makes of it: of the tiny one, 4.
        (
            "qwen_image21",
            diffusers.QwenImage21Pipeline,
            {"call": {"negative_prompt": ""}, "height": 4 * SIZE, "width": 4 * SIZE},
        ),
        # A classic call takes as many strengths as it has steps.
        (
            "ideogram4",
            diffusers.Ideogram4Pipeline,
            {"guidance_scale": None, "call": {"guidance_schedule": [4.0]}},
        ),
    ],
)
def test_a_newer_family_has_the_velocity_of_its_classic_pipeline(name, classic, strength):
    built = seeded(MODULAR[name])()
    named = {n: component for n, component in built.components.items() if n in signature(classic).parameters}
    twin = prepare(classic(**named))
    modular = DiffusersPolicy(prepare(Modular(seeded(MODULAR[name])())), settings(name, "", lora=None))
    other = DiffusersPolicy(twin, settings(name, "", lora=None, **strength))
    x = noise_of(modular)
    with torch.no_grad():
        expected = other.velocity(x, HALF, other.encode(PROMPTS))
        assert_close(modular.velocity(x, HALF, modular.encode(PROMPTS)), expected, atol=1e-5, rtol=1e-5)
    assert_close(modular.decode(x), other.decode(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in MODULAR if name not in ("flux3_rewriting", "ltx25")]
)  # a writer of random weights writes one text
def test_rows_of_a_batch_do_not_know_each_other(name):
    policy = DiffusersPolicy(prepare(Modular(seeded(MODULAR[name])())), settings(name, "", lora=None))
    x, rows = noise_of(policy), [slice(0, 1), slice(1, 2)]
    with torch.no_grad():
        both = policy.velocity(x, HALF, policy.encode(PROMPTS))
        alone = [policy.velocity(x[row], HALF[row], policy.encode(PROMPTS[row])) for row in rows]
        other = policy.velocity(x, HALF, policy.encode(PROMPTS[::-1]))
    assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (both - other).abs().max() > 1e-5


def test_a_strength_for_each_step_is_asked_for_as_one():
    pipeline = prepare(Modular(seeded(MODULAR["ideogram4"])()))
    with pytest.raises(UserError, match="guidance_scale: Ideogram4ModularPipeline has a strength for each"):
        DiffusersPolicy(pipeline, settings("ideogram4", "", guidance_scale=None))


@pytest.mark.parametrize("name", DOCTORED)
def test_the_doctor_finds_a_modular_pipeline_sound(name, modular_folder, thalweg):
    folder = modular_folder(name)
    sides = [
        f"model.{key}={value}"
        for key, value in settings(name, folder).model_dump(exclude_none=True).items()
        if key in SHORT
    ]
    if "call" in OF[name]:
        sides.append(f"model.call={json.dumps(OF[name]['call'])}")
    outcome = thalweg("doctor", f"model={folder}", *sides, "--json")
    assert outcome.out, outcome.err
    found = {row["what"]: row for row in json.loads(outcome.out)}
    # A writer of random weights writes one text; a tiny decoder makes fewer pixels than the family's own.
    wrong = {"flux3_rewriting": {"two prompts in one call"}, "ltx25": {"decoding"}}.get(name, set())
    assert {what for what, row in found.items() if not row["ok"]} == wrong, outcome.out + outcome.err
    assert outcome.code == bool(wrong)
    assert found["pipeline"]["value"].endswith("ModularPipeline")
    assert float(found["stock parity"]["value"]) < 1e-5  # against the modular pipeline's own call
    assert float(found["replay error"]["value"]) == 0
    assert found["network passes of a velocity"]["value"] == PASSES.get(name, "2")
    reached, of = found["parameters with gradient"]["value"].split(" of ")
    assert reached == of
    assert float(found["gradient to latents"]["value"]) > 0


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("flow-grpo", "anima"),
        ("mix-grpo", "anima"),
        ("diffusion-nft", "anima"),
        ("flow-grpo", "flux3"),
        ("flow-grpo", "qwen_image21"),
        *(
            pytest.param("flow-grpo", name, marks=pytest.mark.slow)
            for name in ("flux3_rewriting", "krea2", "ideogram4", "ltx25")
        ),
        *(
            pytest.param(recipe, name, marks=pytest.mark.slow)
            for name in ("sd3", "flux", "z_image")
            for recipe in ("flow-grpo", "mix-grpo", "diffusion-nft")
        ),
        *(
            pytest.param("diffusion-nft", name, marks=pytest.mark.slow)
            for name in ("flux3", "qwen_image21", "krea2", "ideogram4", "ltx25")
        ),
    ],
)
def test_an_iteration_moves_the_adapters_of_a_modular_pipeline(recipe, name, modular_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\ntwo blue circles\n")
    folder = modular_folder(name)
    model = settings(name, folder).model_dump(mode="json", exclude={"path"})
    overrides = {"model": str(folder), "rewards": ["brightness"], **CHEAP, **FEW.get(recipe, {})}
    overrides |= {f"model.{key}": value for key, value in model.items() if value is not None}
    overrides |= {"data.prompts": str(prompts), "evaluation.prompts": str(prompts)}
    run = train(load_recipe(find_recipe(recipe), overrides), tmp_path / "run")
    line = next(m for m in metrics_of(run) if m["event"] == "train")
    assert line["grad_norm"] > 0
    assert line.get("ratio_deviation", 0) < 1e-6
    if recipe == "flow-grpo":
        written = export(run.path, tmp_path / "adapter")  # read back into a fresh pipeline, and compared
        assert [path.name for path in written.paths if path.suffix == ".safetensors"] == [
            "pytorch_lora_weights.safetensors"
        ]
        assert written.difference < 1e-5


@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("anima", ["text_encoder", "tokenizer", "t5_tokenizer"]),
        ("flux3_rewriting", ["text_encoder", "tokenizer", "prompt_upsampler"]),
    ],
)
def test_released_encoders_are_not_asked_again(name, components, modular_folder):
    policy = settings(name, modular_folder(name)).load()
    condition, x = policy.encode(PROMPTS), noise_of(policy)
    with torch.no_grad():
        before = policy.velocity(x, HALF, condition)
        assert policy.encoder.release(PROMPTS) > 0
        assert all(getattr(policy.pipeline, component) is None for component in components)
        assert torch.equal(policy.velocity(x, HALF, policy.encode(PROMPTS)), before)


def test_what_a_modular_pipeline_does_not_take_or_lacks_is_named(modular_folder):
    folder = modular_folder("anima")
    with pytest.raises(UserError, match=r"model\.num_frames: AnimaModularPipeline takes no 'num_frames'"):
        settings("anima", folder, num_frames=5).load()
    with pytest.raises(UserError, match=r"height=34: AnimaModularPipeline needs multiples of"):
        settings("anima", folder, height=34).load()
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match="its component 'vae' cannot be read"):
        settings("anima", folder).load()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Echo", "has no scheduler"),  # it draws its own noise between steps of a distilled model
        ("MiniMaxMusic3", "has no 'text_encoder' or 'decode' block"),  # it writes tokens first
        ("MiniMaxH3", "has 2 schedulers, whose noise levels differ at each step"),  # for video and sound
        (
            "WanAnimate2",
            "takes no latents, so no state can be given to its network",
        ),  # it draws for each part
        ("WanAnimate2Distilled", "takes no latents"),
    ],
)
def test_a_family_in_which_the_seam_has_no_place_is_refused(name, reason):
    with pytest.raises(
        UserError, match=f"{name}ModularPipeline {reason}.*; such pipelines cannot be trained"
    ):
        Modular(getattr(diffusers, f"{name}ModularPipeline")())


def test_a_flow_map_is_refused():
    # The distilled FLUX.3 is told the level that a step leads to; a velocity knows none.
    with pytest.raises(
        UserError, match=r"transformer of Flux3DistilledModularPipeline is a flow map.*distilled from"
    ):
        prepare(Modular(seeded(partial(flux3, "Flux3DistilledModularPipeline", flow_map=True))()))


def test_a_network_of_mean_velocities_is_a_flow_map():
    pipeline = TINY["sd3"].build()
    pipeline.transformer.register_to_config(use_meanflow=True)  # as HunyuanVideo 1.5 says it
    with pytest.raises(UserError, match="transformer of StableDiffusion3Pipeline is a flow map"):
        prepare(pipeline)


def test_prompts_are_rewritten_once_where_the_pipeline_was_saved_with_the_model_that_does(modular_folder):
    without = settings("flux3", modular_folder("flux3")).load()
    assert "max_new_tokens" not in without.pipeline.parameters  # nothing writes
    rewriting = settings("flux3_rewriting", modular_folder("flux3_rewriting")).load()
    written = []
    generate = rewriting.pipeline.prompt_upsampler.generate

    def listen(**options):
        written.append(generate(**options))
        return written[-1]

    rewriting.pipeline.prompt_upsampler.generate = listen
    x, sigma = noise_of(without), HALF
    with torch.no_grad():
        velocities = [policy.velocity(x, sigma, policy.encode(PROMPTS)) for policy in (without, rewriting)]
        again = rewriting.velocity(x, sigma, rewriting.encode(PROMPTS))
    assert len(written) == 2  # once a prompt
    assert torch.equal(velocities[1], again)
    tokenizer, (first, _) = rewriting.pipeline.prompt_upsampler_processor.tokenizer, written
    caption = tokenizer.decode(first[0, -4:], skip_special_tokens=True).strip()
    with torch.no_grad():
        of_caption = without.velocity(x[:1], sigma[:1], without.encode([Prompt(caption)]))
    assert_close(velocities[1][:1], of_caption, atol=1e-5, rtol=1e-5)
    assert (velocities[0] - velocities[1]).abs().max() > 1e-4


def test_a_pipeline_saved_without_what_every_call_needs_is_refused():
    pipeline = seeded(flux3)()
    pipeline.update_components(vae=None)
    with pytest.raises(UserError, match="Flux3ModularPipeline was saved without its component 'vae'"):
        Modular(pipeline).require_components({})
