"""Train the scorer of the scenes world: from noisy latents and a prompt, will the sample be exactly right?

Stages, in this order, each resumable and on one thread:

    python scripts/train_scenes_scorer.py data      # 28 chunks of 2048 rollouts, 7 CPU-minutes
    python scripts/train_scenes_scorer.py train     # 15 CPU-minutes; interrupt and repeat at will
    python scripts/train_scenes_scorer.py evaluate  # AUC on held-out prompts

and then `harden_scenes_scorer.py`, which also writes the weights into the package.

Data: the base model's own ODE starts from noise, from a noised drawing with its prompt, and from a noised
drawing with a prompt much like it; states on the way get the exact judge's verdict on the finished image.
Clean drawings with right and wrong prompts are added. Held-out compositions occur in none of them.

Loss: cross-entropy of the verdict, and a squared error of how many objects of each shape and colour the
finished image shows, which teaches the image layers far more than one bit does.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from thalweg.core.values import Prompt
from thalweg.models.miniature.network import Miniature, MiniatureConfig
from thalweg.models.miniature.policy import load_network
from thalweg.models.miniature.scorer import Scorer, ScorerConfig
from thalweg.worlds.scenes.checker import check
from thalweg.worlds.scenes.drawing import CANVAS, draw
from thalweg.worlds.scenes.prompts import TASKS, held_out_prompts, pretraining_prompts
from thalweg.worlds.scenes.vocabulary import COLORS, SHAPES, VOCABULARY, tokenize

FOLDER = Path("pretraining/scenes_scorer")
CHECKPOINT = FOLDER / "checkpoint.safetensors"
BASE = Path("src/thalweg/worlds/scenes/base.safetensors")
WEIGHTS = BASE.with_name("scorer.safetensors")
KINDS = [(shape, color) for shape in SHAPES for color in COLORS]
CONFIG = ScorerConfig(
    front=MiniatureConfig(
        height=CANVAS,
        width=CANVAS,
        num_tokens=VOCABULARY.num_tokens,
        text_length=VOCABULARY.length,
        text_depth=1,
        depth=3,
    ),
    num_objects=len(KINDS),
)
ROLLOUTS, DRAWINGS = 2048, 4096  # of a chunk
STATES = 5  # kept of a rollout, the finished one among them
EULER_STEPS = 8
BATCH = 128
LEARNING_RATE, WARMUP, FLOOR = 1e-3, 200, 0.03
AVERAGE = 0.999  # decay of the weight average
COUNTS_WEIGHT = 0.5
SAVE_EVERY, LOG_EVERY = 60, 20  # seconds
LEVELS = (0.0, 0.25, 0.5, 0.75)


@cache
def captions() -> dict[str, list[Prompt]]:
    by_task: dict[str, list[Prompt]] = {task: [] for task in TASKS}
    for prompt in pretraining_prompts():
        by_task[prompt.metadata["task"]].append(prompt)
    return by_task


def any_prompt(rng: np.random.Generator) -> Prompt:
    choices = captions()[TASKS[rng.integers(len(TASKS))]]
    return choices[rng.integers(len(choices))]


def prompt_much_like(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """Of 30 prompts of the task, the one with the most words in the same places."""
    choices = captions()[prompt.metadata["task"]]
    words = prompt.text.split()
    others = [choices[i] for i in rng.integers(len(choices), size=30)]
    return max(
        (other for other in others if other is not prompt),
        key=lambda other: sum(a == b for a, b in zip(words, other.text.split(), strict=False)),
    )


def counts_of(verdict) -> list[int]:
    seen = [(found.shape, found.color) for found in verdict.objects]
    return [seen.count(kind) for kind in KINDS]


def chain(base: Miniature, x: Tensor, tokens: Tensor, sigmas: Tensor) -> Tensor:
    """The states (N+1, B, 3, H, W) of Euler's method through the levels (N+1, B)."""
    states = [x]
    for sigma, sigma_next in pairwise(sigmas):
        x = x + base(x, sigma, tokens) * (sigma_next - sigma)[:, None, None, None]
        states.append(x)
    return torch.stack(states)


def judged(images: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Right or wrong, and the numbers of objects, of latents at σ = 0."""
    verdicts = [
        check((x / 2 + 0.5).clamp(0, 1), p.metadata["specification"])
        for x, p in zip(images, prompts, strict=True)
    ]
    right = torch.tensor([v.strict for v in verdicts], dtype=torch.uint8)
    return right, torch.tensor([counts_of(v) for v in verdicts], dtype=torch.uint8)


def drawing_and_prompt(rng: np.random.Generator, matching: float) -> tuple[Tensor, Prompt]:
    """Latents of a drawing with its prompt, or with one much like it."""
    prompt = any_prompt(rng)
    x0 = torch.from_numpy(draw(prompt.metadata["specification"], rng)).float() * 2 - 1
    return x0, prompt if rng.random() < matching else prompt_much_like(prompt, rng)


@torch.no_grad()
def make_chunk(base: Miniature, number: int) -> dict[str, Tensor]:
    rng, noise = np.random.default_rng([7, number]), torch.Generator().manual_seed(7_000_000 + number)
    drawn = [drawing_and_prompt(rng, matching=0.5) for _ in range(ROLLOUTS)]
    x0, prompts = torch.stack([x for x, _ in drawn]), [p for _, p in drawn]
    from_noise = torch.from_numpy(rng.random(ROLLOUTS)) < 0.5
    start = torch.where(from_noise, 1.0, torch.from_numpy(rng.uniform(0.1, 0.95, ROLLOUTS))).float()
    shift = torch.from_numpy(np.exp(rng.uniform(0, np.log(3), ROLLOUTS))).float()
    u = torch.linspace(1, 0, EULER_STEPS + 1)[:, None]
    sigmas = start * shift * u / (1 + (shift - 1) * u)
    level = start[:, None, None, None]
    x = (1 - level) * x0 + level * torch.randn(x0.shape, generator=noise)
    tokens = tokenize([p.text for p in prompts])
    parts = [
        chain(base, *part) for part in zip(x.split(128), tokens.split(128), sigmas.split(128, 1), strict=True)
    ]
    states = torch.cat(parts, 1)
    right, counts = judged(states[-1], prompts)
    steps = torch.rand(EULER_STEPS, ROLLOUTS, generator=noise).argsort(0)[: STATES - 1]
    steps = torch.cat([steps, torch.full((1, ROLLOUTS), EULER_STEPS)])
    rows = torch.arange(ROLLOUTS).expand_as(steps)

    clean = [drawing_and_prompt(rng, matching=0.5) for _ in range(DRAWINGS)]
    clean_x = torch.stack([x for x, _ in clean])
    clean_right, clean_counts = judged(clean_x, [p for _, p in clean])
    clean_tokens = tokenize([p.text for _, p in clean])
    return {
        "x": torch.cat([states[steps, rows].flatten(0, 1), clean_x]).half(),
        "sigma": torch.cat([sigmas[steps, rows].flatten(), torch.zeros(DRAWINGS)]),
        "tokens": torch.cat([tokens[rows.flatten()], clean_tokens]).to(torch.uint8),
        "right": torch.cat([right[rows.flatten()], clean_right]),
        "counts": torch.cat([counts[rows.flatten()], clean_counts]),
    }


def make_data(chunks: int) -> None:
    base = load_network(BASE).eval()
    for number in range(chunks):
        path = FOLDER / f"chunk-{number:03d}.safetensors"
        if path.exists():
            continue
        began = time.process_time()
        tensors = make_chunk(base, number)
        write(path, tensors, {})
        share = tensors["right"].float().mean().item()
        log({"chunk": number, "right": round(share, 3), "cpu_seconds": round(time.process_time() - began, 1)})


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".draft")
    save_file({name: t.contiguous() for name, t in tensors.items()}, draft, metadata=metadata)
    draft.chmod(0o644)  # safetensors writes files that only their owner can read
    os.replace(draft, path)


def log(line: dict) -> None:
    with (FOLDER / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def new_scorer() -> Scorer:
    """Random but for the layers it shares with the base, which start as the base's."""
    torch.manual_seed(0)
    scorer = Scorer(CONFIG)
    base, own = load_network(BASE).state_dict(), scorer.state_dict()
    shared = {
        name: t
        for name, t in base.items()
        if name in own and own[name].shape == t.shape and not name.startswith(("blocks.", "norm_out."))
    }
    scorer.load_state_dict(shared, strict=False)
    return scorer


def optimizer_of(scorer: Scorer) -> torch.optim.AdamW:
    return torch.optim.AdamW(scorer.parameters(), betas=(0.9, 0.98), weight_decay=0.05, fused=True)


def save(
    scorer: Scorer, average: Scorer, optimizer: torch.optim.AdamW, progress: dict, path: Path = CHECKPOINT
) -> None:
    tensors = {f"weights.{n}": t for n, t in scorer.state_dict().items()}
    tensors |= {f"average.{n}": t for n, t in average.state_dict().items()}
    for name, parameter in scorer.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
    write(path, tensors, {"progress": json.dumps(progress)})


def resume(scorer: Scorer, average: Scorer, optimizer: torch.optim.AdamW, path: Path = CHECKPOINT) -> dict:
    if not path.exists():
        return {"update": 0, "cpu_seconds": 0.0}
    tensors = load_file(path)
    scorer.load_state_dict({n: tensors[f"weights.{n}"] for n in scorer.state_dict()})
    average.load_state_dict({n: tensors[f"average.{n}"] for n in average.state_dict()})
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    for name, parameter in scorer.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(progress["update"])),
            "exp_avg": tensors[f"first.{name}"],
            "exp_avg_sq": tensors[f"second.{name}"],
        }
    return progress


def learn(
    scorer: Scorer,
    average: Scorer,
    optimizer: torch.optim.AdamW,
    batch: dict[str, Tensor],
    update: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """One update on some rows of the data; the two losses."""
    x, sigma = batch["x"].float(), batch["sigma"]
    # Finished latents come as they are and as images, whose values are bounded.
    bounded = (sigma == 0) & torch.from_numpy(rng.random(len(x)) < 0.5)
    x = torch.where(bounded[:, None, None, None], x.clamp(-1, 1), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit, counts = scorer(x, sigma, batch["tokens"].long())
    verdict = F.binary_cross_entropy_with_logits(logit, batch["right"].float())
    counting = (counts - batch["counts"].float()).square().sum(1).mean()
    (verdict + COUNTS_WEIGHT * counting).backward()
    torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    keep = min(AVERAGE, (1 + update) / (10 + update))
    with torch.no_grad():
        for kept, new in zip(average.parameters(), scorer.parameters(), strict=True):
            kept.lerp_(new, 1 - keep)
    return verdict.item(), counting.item()


def stored(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The rows of stored chunks."""
    chunks = [load_file(path) for path in paths]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def train(updates: int, seconds: float) -> None:
    """Up to update number `updates`, where the learning rate has fallen; at most some seconds of it now."""
    data = stored(sorted(FOLDER.glob("chunk-*.safetensors")))
    scorer, average = new_scorer(), new_scorer()
    optimizer = optimizer_of(scorer)
    progress = resume(scorer, average, optimizer)
    clock, began, saved, logged = progress["cpu_seconds"] - time.process_time(), *[time.monotonic()] * 3
    losses: list[tuple[float, float]] = []
    while progress["update"] < updates and time.monotonic() - began < seconds:
        update = progress["update"]
        rng = np.random.default_rng([11, update])
        rows = torch.from_numpy(rng.integers(len(data["x"]), size=BATCH))
        decay = 1 - (1 - FLOOR) * max(0.0, update / updates - 0.3) / 0.7
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (update + 1) / WARMUP) * decay
        batch = {name: values[rows] for name, values in data.items()}
        losses.append(learn(scorer, average, optimizer, batch, update, rng))
        progress = {"update": update + 1, "cpu_seconds": round(clock + time.process_time(), 1)}
        if time.monotonic() - logged > LOG_EVERY:
            means = np.mean(losses, 0).round(4).tolist()
            log({**progress, "verdict_loss": means[0], "counting_loss": means[1]})
            losses, logged = [], time.monotonic()
        if time.monotonic() - saved > SAVE_EVERY:
            save(scorer, average, optimizer, progress)
            saved = time.monotonic()
    save(scorer, average, optimizer, progress)


def auc(scores: Tensor, right: Tensor) -> float:
    """The share of (right, wrong) pairs in order, ties counting half."""
    gaps = scores[right][:, None] - scores[~right][None]
    return ((gaps > 0).float() + 0.5 * (gaps == 0).float()).mean().item()


@torch.no_grad()
def measure(scorer: Scorer, seeds: int = 2) -> dict:
    """On the base's samples of held-out prompts, at noise levels on their way."""
    base, prompts = load_network(BASE).eval(), held_out_prompts()
    tokens = tokenize([p.text for p in prompts]).repeat(seeds, 1)
    noise = torch.Generator().manual_seed(123)
    x = torch.randn(len(tokens), 3, CANVAS, CANVAS, generator=noise)
    sigmas = torch.linspace(1, 0, EULER_STEPS + 1)[:, None].expand(-1, len(tokens))
    states = torch.cat(
        [
            chain(base, *part)
            for part in zip(x.split(128), tokens.split(128), sigmas.split(128, 1), strict=True)
        ],
        1,
    )
    right = judged(states[-1], list(prompts) * seeds)[0].bool()
    states[-1].clamp_(-1, 1)
    table = {}
    for level in LEVELS:
        x = states[round((1 - level) * EULER_STEPS)]
        at = torch.full((len(x),), level)
        logit = torch.cat(
            [scorer(*p)[0] for p in zip(x.split(256), at.split(256), tokens.split(256), strict=True)]
        )
        accuracy = ((logit > 0) == right).float().mean().item()
        table[str(level)] = {"auc": round(auc(logit, right), 4), "accuracy": round(accuracy, 4)}
    return {"samples": len(right), "right": round(right.float().mean().item(), 4), "by_sigma": table}


def averaged(path: Path = CHECKPOINT) -> tuple[Scorer, dict]:
    """The averaged weights as they ship, in float16, and how far they were trained."""
    scorer, average = new_scorer(), new_scorer()
    progress = resume(scorer, average, optimizer_of(scorer), path)
    average.load_state_dict({name: t.half().float() for name, t in average.state_dict().items()})
    return average.eval().requires_grad_(False), progress


def export(path: Path, reached: dict) -> None:
    """The averaged weights as float16, and beside them what they reach."""
    weights = {name: t.half() for name, t in averaged(path)[0].state_dict().items()}
    write(WEIGHTS, weights, {"config": CONFIG.model_dump_json()})
    about = {
        **reached,
        "parameters": sum(t.numel() for t in weights.values()),
        "torch": torch.__version__,
        "hardware": f"one thread, {platform.machine()}",
    }
    WEIGHTS.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the scorer of the scenes world, stage by stage.")
    parser.add_argument("stage", choices=["data", "train", "evaluate"])
    parser.add_argument("--chunks", type=int, default=28, help="of data, 2048 rollouts each")
    parser.add_argument("--updates", type=int, default=9000, help="of the whole training")
    parser.add_argument(
        "--seconds", type=float, default=900, help="wall-clock time of this piece of training"
    )
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    match options.stage:
        case "data":
            make_data(options.chunks)
        case "train":
            train(options.updates, options.seconds)
        case "evaluate":
            average, progress = averaged()
            print(json.dumps({**progress, **measure(average)}, indent=2))


if __name__ == "__main__":
    main()
