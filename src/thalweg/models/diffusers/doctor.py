"""Does a pipeline work through the seam? Compared with its own unchanged call, step by step.

The measure is the stock pipeline with Euler steps, which for one that predicts noise are DDIM's, from the
same noise and over the same noise levels.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from thalweg.core.finding import Finding
from thalweg.core.values import Prompt
from thalweg.flow import alpha_bar_from_sigma, flow_norm, sigma_from_alpha_bar
from thalweg.models.diffusers.model import DiffusersModel
from thalweg.models.diffusers.modular import Modular, name_of
from thalweg.models.diffusers.policy import DiffusersPolicy, over_white
from thalweg.models.diffusers.readings import DiscreteReading, FlowReading
from thalweg.models.diffusers.refusals import in_a_line
from thalweg.models.diffusers.seam import Seam

STEPS = 4
"""Divides 1000: elsewhere diffusers' DDIM steps to timesteps that it then does not visit."""
PROMPT = Prompt("a red square left of a blue circle")
OTHER_PROMPT = Prompt("four sleeping cats")
STRIDE, DECODING_STRIDE = 0.01, 0.001
"""How far states are moved to see how the velocity changes, and latents to see how decoders bend."""
SLACK = 0.02
"""How far a gradient may be from these differences."""
NONE = "none"
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Largest difference, relative to the largest value, that rounding explains."""


class Recording(FlowMatchEulerDiscreteScheduler):
    """The stock Euler steps; every state they lead to is written down."""

    states: list[Tensor]

    def scale_model_input(self, sample: Tensor, *args: Any) -> Tensor:
        """Pipelines that take other schedulers too ask for it, of all but the stock class itself."""
        return sample

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        return _written(self.states, super().step(model_output, timestep, sample, *args, **options))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recording":
        copied: Any = Recording.from_config(self.config)
        copied.states = self.states
        return copied


class RecordingDDIM(DDIMScheduler):
    """The stock DDIM steps without noise, which are Euler steps of the flow; as `Recording`."""

    states: list[Tensor]

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        return _written(self.states, super().step(model_output, timestep, sample, *args, **options))


def _written(states: list[Tensor], result: Any) -> Any:
    states.append(result[0] if isinstance(result, tuple) else result.prev_sample)
    return result


def _recording(seam: Seam) -> Any:
    """A stock scheduler that takes Euler steps and writes its states down."""
    reading = seam.reading
    if isinstance(reading, FlowReading):
        scheduler: Any = Recording.from_config(seam.config, stochastic_sampling=False)
    else:
        assert isinstance(reading, DiscreteReading)
        alpha_bar = alpha_bar_from_sigma(reading.levels)
        before = torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
        scheduler = RecordingDDIM(
            num_train_timesteps=len(alpha_bar),
            trained_betas=(1 - alpha_bar / before).tolist(),
            clip_sample=False,
            prediction_type=reading.prediction,  # type: ignore[arg-type]
            timestep_spacing="trailing",
        )
    scheduler.states = []
    return scheduler


def _levels_visited(scheduler: Any, seam: Seam) -> Tensor:
    if isinstance(seam.reading, FlowReading):
        levels = scheduler.sigmas.cpu()
        return 1 - levels if seam.reading.inverted else levels
    levels = sigma_from_alpha_bar(scheduler.alphas_cumprod[scheduler.timesteps.cpu()])
    return torch.cat([levels, torch.zeros(1)])


def examine_pipeline(model: DiffusersModel) -> list[Finding]:
    """Open the pipeline and look at everything that training relies on; nothing is trained."""
    policy, tolerance = model.load(), TOLERANCE[model.precision]
    with in_a_line(policy.pipeline):
        return _findings(policy, tolerance)


def _findings(policy: DiffusersPolicy, tolerance: float) -> list[Finding]:
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    states, sigmas, outputs = _stock(policy, noise[:1])
    findings = [
        Finding("pipeline", name_of(policy.pipeline), True),
        Finding("latents", f"{'x'.join(map(str, policy.latent_shape))}, {_name(policy.latent_dtype)}", True),
        Finding("network passes of a velocity", str(policy.passes_per_velocity), True),
        Finding(
            "trained parameters", f"{sum(p.numel() for p in policy.weights.parameters.values()):,}", True
        ),
        *_taps(policy),
        _parity(policy, noise[:1], sigmas, states, tolerance),
        _replay(policy, noise),
        _prompts(policy, noise[:1], tolerance),
        *_gradients(policy, noise),
        *(_slopes(policy, noise[:1], states[:1]) if policy.model.precision == "float32" else []),
        _levels(policy, noise, tolerance),
        _decoding(policy, states, outputs, tolerance),
    ]
    return findings


def _taps(policy: DiffusersPolicy) -> list[Finding]:
    """Where gradients are scaled, and which attention can be noted; nothing where neither is."""
    scaled, known = policy.scaled_inputs, ", ".join(policy.family.attended)
    findings = [Finding("inputs with scaled gradient", str(scaled), True)] if scaled else []
    return [*findings, Finding("attention that can be noted", known, True)] if known else findings


def _stock(policy: DiffusersPolicy, noise: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(final latents, noise levels, decoded) of the pipeline's own call."""
    pipeline, seam = policy.pipeline, policy.pipeline.scheduler
    scheduler = _recording(seam)
    pipeline.scheduler = scheduler
    texts = {"prompt": PROMPT.text, **{n: policy.arguments.get(n, "") for n in policy.encoder.texts}}
    call: Any = pipeline.unchanged if isinstance(pipeline, Modular) else pipeline
    try:
        made = call(
            num_inference_steps=STEPS,
            output_type="pt",
            return_dict=False,
            generator=torch.Generator(policy.device).manual_seed(0),
            **policy.arguments
            | policy.given(noise, policy.arguments)
            | {name: policy.encoder.as_given([text]) for name, text in texts.items()},
        )
    finally:
        pipeline.scheduler = seam
    states = policy.pack(scheduler.states[-len(policy.family.latents) :])
    outputs = [over_white(m.float().cpu()) for m in made if isinstance(m, Tensor)]
    return states.float(), _levels_visited(scheduler, seam), outputs


@torch.no_grad()
def _parity(
    policy: DiffusersPolicy, x: Tensor, sigmas: Tensor, expected: Tensor, tolerance: float
) -> Finding:
    condition = policy.encode([PROMPT])
    # A flow's own call starts from the noise as it is, wherever its levels start.
    if not isinstance(policy.pipeline.scheduler.reading, FlowReading):
        x = flow_norm(sigmas[0]).to(x) * x
    for sigma, sigma_next in pairwise(sigmas):
        x = (x + (sigma_next - sigma) * policy.velocity(x, sigma[None], condition)).to(policy.latent_dtype)
    error = _difference(x, expected)
    advice = (
        "the pipeline does more between its steps than call its network, such as guidance that remembers "
        "earlier ones; training is on the velocity without it"
    )
    return Finding("stock parity", f"{error:.2g}", error <= tolerance, "" if error <= tolerance else advice)


def _replay(policy: DiffusersPolicy, noise: Tensor) -> Finding:
    condition, sigma = policy.encode([PROMPT] * 2), torch.full((2,), 0.7)
    with torch.no_grad():
        rollout = policy.velocity(noise, sigma, condition)
    error = float((policy.velocity(noise, sigma, condition).detach() - rollout).abs().max())
    advice = "" if error == 0 else "the network is not the same twice; look for dropout or caches"
    return Finding("replay error", f"{error:.2g}", error == 0, advice)


@torch.no_grad()
def _prompts(policy: DiffusersPolicy, noise: Tensor, tolerance: float) -> Finding:
    """Rows of one call have prompts of their own, and the network hears them."""
    sigma, what = torch.full((2,), 0.7), "two prompts in one call"
    prompts = [PROMPT, OTHER_PROMPT]
    together = policy.velocity(noise.expand(2, *noise.shape[1:]), sigma, policy.encode(prompts))
    alone = torch.cat([policy.velocity(noise, sigma[:1], policy.encode([prompt])) for prompt in prompts])
    error = _difference(together, alone)
    if error > tolerance:
        advice = "set one_row=True in its entry in models/diffusers/families.py"
        return Finding(what, f"differ by {error:.2g} from a call each", False, advice)
    if torch.equal(alone[0], alone[1]):
        advice = "the network is not told the prompt; raise model.max_sequence_length if a template fills it"
        return Finding(what, "make the same", False, advice)
    return Finding(what, f"as a call each to {error:.2g}", True)


def _gradients(policy: DiffusersPolicy, noise: Tensor) -> list[Finding]:
    x = noise.clone().requires_grad_()
    parameters = list(policy.weights.parameters.values())
    # Both ends of the levels: Wan 2.2 has a network for each.
    velocity = policy.velocity(x, torch.tensor([0.97, 0.5]), policy.encode([PROMPT] * 2))
    latents, *grads = torch.autograd.grad(velocity.square().mean(), [x, *parameters], allow_unused=True)
    reached = sum(grad is not None for grad in grads)
    advice = "no parameter learns; give model.lora.targets" if not reached else ""
    return [
        Finding("parameters with gradient", f"{reached} of {len(parameters)}", reached > 0, advice),
        Finding("gradient to latents", f"{float(latents.norm()):.2g}", bool(latents.any())),
    ]


def _slopes(policy: DiffusersPolicy, noise: Tensor, latents: Tensor) -> list[Finding]:
    """Of the velocity, and of decoding, which objectives that climb a reward go through."""
    condition, sigma = policy.encode([PROMPT]), torch.full((1,), 0.7)
    advice = "a part of the network lets no gradient through: training would follow a wrong one"
    of_velocity = _slope(
        "gradient by differences", lambda x: policy.velocity(x, sigma, condition), noise, STRIDE, advice
    )
    advice = (
        "the decoder lets none through: objectives that climb a reward, such as that of refl, cannot be used"
    )
    of_decoding = _slope(
        "gradient of decoding",
        lambda x: torch.cat([made.flatten() for made in _made(policy, x)]),
        latents,
        DECODING_STRIDE,
        advice,
    )
    return [of_velocity, replace(of_decoding, ok=of_decoding.ok or of_decoding.value == NONE)]


def _slope(what: str, of: Callable[[Tensor], Tensor], at: Tensor, stride: float, advice: str) -> Finding:
    """The gradient of a map against its differences; not told apart from rounding in bfloat16.

    Along a direction d, w = f(x + hd) - f(x - hd) is 2h J d, so <w, J d>, which the gradient of <w, f> gives,
    is <w, w> / 2h.
    """
    draw = torch.Generator().manual_seed(1)
    d = torch.randn(at.shape, generator=draw).to(at.device)
    with torch.no_grad():
        ahead, behind = (of(at + h * d) for h in (stride, -stride))
    x, w = at.clone().requires_grad_(), (ahead - behind).double()
    try:
        made = of(x)
    except NotImplementedError as error:  # attention without a backward pass on this device
        return Finding(what, NONE, False, f"{advice}: {error}")
    if not made.requires_grad:
        return Finding(what, NONE, False, advice)
    (slope,) = torch.autograd.grad((made.double() * w).sum(), x)
    share = float((slope.double() * d).sum() * 2 * stride / w.square().sum())
    ok = abs(share - 1) < SLACK
    return Finding(what, f"{share:.3f} of it", ok, "" if ok else advice)


@torch.no_grad()
def _levels(policy: DiffusersPolicy, noise: Tensor, tolerance: float) -> Finding:
    condition, sigma, family = policy.encode([PROMPT] * 2), torch.tensor([0.9, 0.4]), policy.family
    what = "several noise levels in one call"
    if family.one_row:
        return Finding(what, "no, a call takes one sample", True)

    def velocity(rows_may_differ: bool) -> Tensor:
        policy.family = replace(family, rows_may_differ=rows_may_differ)
        try:
            return policy.velocity(noise, sigma, condition)
        finally:
            policy.family = family

    alone = velocity(False)
    together = _attempt(lambda: velocity(True))
    works = together is not None and _difference(together, alone) <= tolerance
    if works and not family.rows_may_differ:
        return Finding(
            what, "would work", True, "faster with rows_may_differ=True in models/diffusers/families.py"
        )
    if family.rows_may_differ and not works:
        return Finding(what, "wrong", False, "remove rows_may_differ in models/diffusers/families.py")
    return Finding(what, "yes" if works else "no, a call each", True)


def _decoding(policy: DiffusersPolicy, latents: Tensor, expected: list[Tensor], tolerance: float) -> Finding:
    with torch.no_grad():
        ours = _made(policy, latents)
    error = max(_difference(mine, stock) for mine, stock in zip(ours, expected, strict=True))
    shapes = ", ".join("x".join(map(str, mine.shape[1:])) for mine in ours)
    made_as = f"{shapes}; differs by {error:.2g}"
    if error <= tolerance and (other := _other_size(policy.arguments, ours[0])):
        return Finding("decoding", made_as, False, f"not the size that was asked for; give {other}")
    return Finding("decoding", made_as, error <= tolerance)


def _other_size(asked: Mapping[str, Any], made: Tensor) -> str:
    """The size that was made, where the pipeline chose another than it was asked for without a word."""
    if made.ndim < 4:  # sound
        return ""
    sides = {"height": made.shape[-2], "width": made.shape[-1]}
    if made.ndim == 5:
        sides["num_frames"] = made.shape[1]
    other = {key: side for key, side in sides.items() if asked.get(key, side) != side}
    return " ".join(f"model.{key}={side}" for key, side in other.items())


def _made(policy: DiffusersPolicy, latents: Tensor) -> list[Tensor]:
    """What the decoder makes: images, or frames and sound."""
    made = policy.decode(latents)
    if isinstance(made, Tensor):
        return [made]
    return [part for part in (made.frames, made.audio) if part is not None]


def _attempt(compute: Callable[[], Tensor]) -> Tensor | None:
    """Pipelines that cannot take a level for each row stop with one of these."""
    try:
        return compute()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
