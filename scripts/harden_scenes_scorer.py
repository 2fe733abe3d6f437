"""Teach the scorer of the scenes world what fools it, so that a policy may climb its gradient.

After `train_scenes_scorer.py train`, each round resumable and on one thread:

    python scripts/harden_scenes_scorer.py rounds    # 32 rounds of 76 CPU-seconds
    python scripts/harden_scenes_scorer.py evaluate  # what climbing it gains; AUC on held-out prompts
    python scripts/harden_scenes_scorer.py export    # float16 weights into the package

A round lets a policy, which starts as the base in every fourth one, climb the scorer's log-odds through its
last steps of sampling, and lets finished samples climb it alone, as adversarial images do. The exact judge
gives all of them their true verdict; the scorer learns from the rows it was first trained on and from those
of the rounds, half and half, the latest more often.
"""

import argparse
import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_scenes_scorer import (
    BASE,
    BATCH,
    CHECKPOINT,
    EULER_STEPS,
    FOLDER,
    STATES,
    WARMUP,
    any_prompt,
    averaged,
    captions,
    chain,
    export,
    judged,
    learn,
    log,
    measure,
    new_scorer,
    optimizer_of,
    resume,
    save,
    stored,
    write,
)

from thalweg.core.values import Prompt
from thalweg.models.miniature.network import Miniature
from thalweg.models.miniature.policy import load_network
from thalweg.models.miniature.scorer import Scorer
from thalweg.worlds.scenes.drawing import CANVAS
from thalweg.worlds.scenes.vocabulary import tokenize

HARDENED = FOLDER / "hardened.safetensors"
CLIMBS, CLIMBERS = 48, 48  # updates of a round's policy, samples of each
CLIMB_RATES = 5e-5, 3e-4  # its learning rate, drawn
CLIMB_ROUNDS = 4  # after which it starts as the base again
ASCENTS, ASCENT_STEPS = 768, 12  # images of a round that climb alone
UPDATES = 300  # of the scorer, a round
LEARNING_RATE, FLOOR = 5e-4, 0.05


@cache
def prompts_by_tokens() -> dict[tuple[int, ...], Prompt]:
    prompts = [prompt for task in captions().values() for prompt in task]
    return {
        tuple(words): prompt
        for words, prompt in zip(tokenize([p.text for p in prompts]).tolist(), prompts, strict=True)
    }


def climb(
    scorer: Scorer, policy: Miniature, rng: np.random.Generator, rate: float, updates: int
) -> list[dict[str, Tensor]]:
    """The rows that a policy leaves behind while it climbs, a part for each of its updates."""
    policy.requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, betas=(0.9, 0.99))
    sigmas = torch.linspace(1, 0, EULER_STEPS + 1)[:, None].expand(-1, CLIMBERS)
    parts = []
    for _ in range(updates):
        prompts = [any_prompt(rng) for _ in range(CLIMBERS)]
        tokens = tokenize([p.text for p in prompts])
        x = torch.from_numpy(rng.standard_normal((CLIMBERS, 3, CANVAS, CANVAS), dtype=np.float32))
        last = int(rng.choice([1, 2, 4]))  # steps with a gradient
        split = EULER_STEPS - last
        with torch.no_grad():
            before = chain(policy, x, tokens, sigmas[: split + 1])
        after = chain(policy, before[-1], tokens, sigmas[split:])
        log_odds = scorer(after[-1].clamp(-1, 1), sigmas[-1], tokens)[0]
        (-log_odds.mean()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        states = torch.cat([before[:-1], after]).detach()
        right, counts = judged(states[-1], prompts)
        steps = [*rng.permutation(EULER_STEPS)[: STATES - 1].tolist(), EULER_STEPS]
        parts.append(
            {
                "x": states[steps].flatten(0, 1).half(),
                "sigma": sigmas[steps].flatten(),
                "tokens": tokens.repeat(STATES, 1).to(torch.uint8),
                "right": right.repeat(STATES),
                "counts": counts.repeat(STATES, 1),
                "log_odds": log_odds.detach(),
            }
        )
    return parts


def ascend(
    scorer: Scorer, data: dict[str, Tensor], number: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Finished samples after steps up the gradient, each of its own length, and their verdict then."""
    finished = np.flatnonzero((data["sigma"] == 0).numpy())
    rows = torch.from_numpy(rng.choice(finished, number, replace=False))
    x, tokens = data["x"][rows].float().clamp(-1, 1), data["tokens"][rows].long()
    length = torch.from_numpy(np.exp(rng.uniform(np.log(0.02), np.log(0.6), number))).float()
    for _ in range(int(rng.integers(1, ASCENT_STEPS + 1))):
        x.requires_grad_()
        log_odds = scorer(x, torch.zeros(number), tokens)[0]
        (gradient,) = torch.autograd.grad(log_odds.sum(), x)
        size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        x = (x.detach() + (length / size)[:, None, None, None] * gradient).clamp(-1, 1)
    known = prompts_by_tokens()
    right, counts = judged(x, [known[tuple(words)] for words in tokens.tolist()])
    return {
        "x": x.half(),
        "sigma": torch.zeros(number),
        "tokens": tokens.to(torch.uint8),
        "right": right,
        "counts": counts,
    }


def round_of(number: int) -> Path:
    return FOLDER / f"round-{number:03d}.safetensors"


def climber_of(number: int) -> Path:
    return FOLDER / f"climber-{number:03d}.safetensors"


def make_round(scorer: Scorer, number: int, first: dict[str, Tensor]) -> dict[str, Tensor]:
    rng, policy = np.random.default_rng([13, number]), load_network(BASE)
    if number % CLIMB_ROUNDS:
        policy.load_state_dict(load_file(climber_of(number - 1)))
    rate = float(np.exp(rng.uniform(*np.log(CLIMB_RATES))))
    parts = climb(scorer, policy, rng, rate, CLIMBS)
    write(climber_of(number), policy.state_dict(), {})
    log({"round": number, "rate": round(rate, 6), **summary(parts)})
    for part in parts:
        del part["log_odds"]
    climbed = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    alone = [ascend(scorer, data, ASCENTS // 2, rng) for data in (first, climbed)]
    return {name: torch.cat([climbed[name], *(part[name] for part in alone)]) for name in climbed}


def summary(parts: list[dict[str, Tensor]], window: int = 8) -> dict:
    """What the policy gained by the scorer and by the exact judge, first updates against last."""
    log_odds = torch.stack([part["log_odds"].mean() for part in parts])
    right = torch.stack([part["right"][-CLIMBERS:].float().mean() for part in parts])
    return {
        name: [round(v.mean().item(), 3) for v in values.split(window)]
        for name, values in {"log_odds": log_odds, "right": right}.items()
    }


def harden(rounds: int, seconds: float) -> None:
    """Up to round number `rounds`, where the rate has fallen; no round is begun after some seconds."""
    scorer, average = new_scorer(), new_scorer()
    optimizer = optimizer_of(scorer)
    progress = resume(scorer, average, optimizer, HARDENED)
    if not HARDENED.exists():
        trained, progress = averaged()
        for network in (scorer, average):
            network.load_state_dict(trained.state_dict())
    clock, began = progress["cpu_seconds"] - time.process_time(), time.monotonic()
    first = stored(sorted(FOLDER.glob("chunk-*.safetensors")))
    while (number := progress.get("round", 0)) < rounds and time.monotonic() - began < seconds:
        path = round_of(number)
        if not path.exists():
            write(path, make_round(average.eval().requires_grad_(False), number, first), {})
        sources = [  # half of a batch is old, a quarter new
            (first, BATCH // 2),
            (stored(map(round_of, range(number + 1))), BATCH // 4),
            (stored(map(round_of, range(max(0, number + 1 - CLIMB_ROUNDS), number + 1))), BATCH // 4),
        ]
        decay = 1 - (1 - FLOOR) * max(0.0, 2 * number / rounds - 1)
        losses = []
        for i in range(UPDATES):
            warm = min(1, (number * UPDATES + i + 1) / WARMUP)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * decay
            rng = np.random.default_rng([17, progress["update"]])
            drawn = [(data, torch.from_numpy(rng.integers(len(data["x"]), size=n))) for data, n in sources]
            batch = {name: torch.cat([data[name][rows] for data, rows in drawn]) for name in first}
            losses.append(learn(scorer, average, optimizer, batch, progress["update"], rng))
            progress["update"] += 1
        progress |= {"round": number + 1, "cpu_seconds": round(clock + time.process_time(), 1)}
        verdict, counting = np.mean(losses, 0).round(4).tolist()
        log({**progress, "verdict_loss": verdict, "counting_loss": counting})
        save(scorer, average, optimizer, progress, HARDENED)


def evaluate() -> dict:
    """What a new policy gains, by the scorer and by the exact judge, while it climbs; and the AUC."""
    average, progress = averaged(HARDENED)
    parts = climb(average, load_network(BASE), np.random.default_rng(19), 1e-4, 128)
    return {**progress, "climbed": summary(parts, 16), "held_out": measure(average)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the scorer of the scenes world what fools it.")
    parser.add_argument("stage", choices=["rounds", "evaluate", "export"])
    parser.add_argument("--rounds", type=int, default=32, help="of the whole training")
    parser.add_argument(
        "--seconds", type=float, default=900, help="wall-clock time of this piece of training"
    )
    options = parser.parse_args()
    needed, maker = HARDENED, "harden_scenes_scorer.py rounds"
    if options.stage == "rounds":
        needed, maker = CHECKPOINT, "train_scenes_scorer.py train"
    if not needed.exists():
        parser.error(f"{options.stage}: {needed} is missing; run scripts/{maker} first")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    match options.stage:
        case "rounds":
            harden(options.rounds, options.seconds)
        case "evaluate":
            print(json.dumps(evaluate(), indent=2))
        case "export":
            export(HARDENED, evaluate())


if __name__ == "__main__":
    main()
