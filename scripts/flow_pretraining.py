"""Pretrain the small flow model of a world on the pictures it draws itself, by likelihood alone.

Flow matching: with x_σ = (1-σ) x0 + σ ε the loss is |v - (ε - x0)|², whose weight in x0 is 1/σ² (held at
1/0.1²). The schedule is warm-up, stable, decay: `stable` runs as long as one likes, `anneal` takes the rate
linearly to a twentieth, `distill` regresses the velocity onto the guided one, so that sampling needs no
guidance, and `export` writes the averaged weights. Every stage resumes from the checkpoint of the one before.

Processes are data parallel. A bfloat16 copy computes gradients; float32 weights, moments and average live in
flat vectors. Captions are dropped now and then, so that the prompt of padding alone is the unconditional one.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from thalweg.models.miniature.network import Miniature, MiniatureConfig

BETAS = (0.9, 0.98)
WARMUP = 500  # updates
FLOOR = 0.05  # of the learning rate, at the end of a decay
CAPTION_DROP = 0.08
GUIDANCE = 2.5
AVERAGE = 0.999  # decay of the weight average
POOL = 40_000  # pictures kept at a time by one process
REUSE = 4  # times a picture is seen before another takes its place, on average
EULER_STEPS = 8
SAVE_EVERY, LOG_EVERY, EVALUATE_EVERY = 120, 30, 300  # seconds


@dataclass(frozen=True)
class Question:
    """A held-out prompt: its tokens, its task, and whether an image in [0, 1] answers it exactly."""

    tokens: Tensor
    task: str
    answered_by: Callable[[Tensor], bool]


@dataclass(frozen=True)
class World:
    """What a pretraining script says about its world."""

    name: str
    config: MiniatureConfig
    learning_rate: float
    batch_size: int  # of one process
    draw: Callable[[np.random.Generator], tuple[np.ndarray, Tensor]]  # image in [0, 1] and its tokens
    questions: Callable[[], Sequence[Question]]
    weights: Path  # where the base is exported

    @property
    def folder(self) -> Path:
        return Path("pretraining") / self.name


class Pool:
    """Pictures drawn beforehand, renewed a few at a time."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        config = world.config
        self.world, self.rng, self.oldest = world, rng, 0
        self.images = np.zeros((POOL, config.channels, config.height, config.width), dtype=np.uint8)
        self.tokens = torch.zeros((POOL, config.text_length), dtype=torch.long)
        self.renew(POOL)

    def renew(self, count: int) -> None:
        for _ in range(count):
            image, tokens = self.world.draw(self.rng)
            self.images[self.oldest] = np.rint(image * 255)
            self.tokens[self.oldest] = tokens
            self.oldest = (self.oldest + 1) % POOL

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] and tokens, some of them dropped."""
        size = self.world.batch_size
        self.renew(size // REUSE)
        chosen = self.rng.integers(POOL, size=size)
        tokens = self.tokens[chosen]
        tokens[torch.from_numpy(self.rng.random(size) < CAPTION_DROP)] = 0
        return torch.from_numpy(self.images[chosen]).float() / 127.5 - 1, tokens


def draw_sigmas(size: int) -> Tensor:
    """Three quarters around σ = 0.7, where the layout is decided; the rest uniform."""
    return torch.where(
        torch.rand(size) < 0.75, torch.sigmoid(torch.randn(size) * 1.1 + 0.8), torch.rand(size)
    )


def coarse(config: MiniatureConfig) -> Miniature:
    """A network in bfloat16, laid out as the CPU's convolutions like it."""
    return Miniature(config).bfloat16().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class Flat:
    """A network whose parameters, gradients and moments are flat vectors."""

    def __init__(self, config: MiniatureConfig) -> None:
        self.working = coarse(config)
        self.parameters = list(self.working.parameters())
        self.shapes = [p.shape for p in self.parameters]
        torch.manual_seed(0)
        self.weights = self.flatten(Miniature(config).parameters())
        self.average = self.weights.clone()
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        self.optimizer = torch.optim.AdamW([self.weights], betas=BETAS, weight_decay=0, fused=True)
        moments = {"exp_avg": self.first_moment, "exp_avg_sq": self.second_moment}
        self.optimizer.state[self.weights] = {"step": torch.tensor(0.0), **moments}

    @staticmethod
    def flatten(tensors) -> Tensor:
        return torch.cat([t.detach().float().reshape(-1) for t in tensors])

    @torch.no_grad()
    def put(self, vector: Tensor, network: Miniature) -> None:
        parts = vector.split([p.numel() for p in network.parameters()])
        for parameter, part in zip(network.parameters(), parts, strict=True):
            parameter.copy_(part.view(parameter.shape))

    @torch.no_grad()
    def update(self, gradient: Tensor, learning_rate: float, step: int, averaged_steps: int) -> None:
        """Adam on a gradient of norm at most 1, then the average, which forgets faster while it is young."""
        self.weights.grad = gradient.mul_((1 / gradient.norm()).clamp(max=1))
        self.optimizer.state[self.weights]["step"].fill_(step - 1)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.average.lerp_(self.weights, 1 - min(AVERAGE, (1 + averaged_steps) / (10 + averaged_steps)))
        self.put(self.weights, self.working)


def save(flat: Flat, progress: dict, path: Path) -> None:
    """Whole or not at all."""
    tensors = {
        "weights": flat.weights,
        "average": flat.average,
        "first_moment": flat.first_moment,
        "second_moment": flat.second_moment,
    }
    draft = path.with_suffix(".draft")
    save_file(tensors, draft, metadata={"progress": json.dumps(progress)})
    os.replace(draft, path)


def resume(flat: Flat, path: Path) -> dict:
    if not path.exists():
        return {"step": 0, "images": 0, "seconds": 0.0}
    for name, tensor in load_file(path).items():
        getattr(flat, name).copy_(tensor)
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["progress"])


@torch.no_grad()
def sample(network: Miniature, tokens: Tensor, seed: int, guidance: float = 1.0) -> Tensor:
    """Images in [0, 1] by Euler steps from σ = 1 to 0."""
    config = network.config
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(len(tokens), config.channels, config.height, config.width, generator=noise)
    sigmas = torch.linspace(1, 0, EULER_STEPS + 1)
    for sigma, sigma_next in pairwise(sigmas):
        velocity = network(x, sigma.expand(len(x)), tokens)
        if guidance != 1:
            free = network(x, sigma.expand(len(x)), torch.zeros_like(tokens))
            velocity = free + guidance * (velocity - free)
        x = x + velocity * (sigma_next - sigma)
    return (x / 2 + 0.5).clamp(0, 1)


def evaluate(
    network: Miniature, questions: Sequence[Question], seeds: int, guidance: float = 1.0
) -> dict[str, float]:
    """Strict accuracy of each task and their mean."""
    hits: dict[str, list[bool]] = {}
    for seed in range(seeds):
        for start in range(0, len(questions), 64):
            part = questions[start : start + 64]
            images = sample(network, torch.stack([q.tokens for q in part]), seed * 10_000 + start, guidance)
            for question, image in zip(part, images, strict=True):
                hits.setdefault(question.task, []).append(question.answered_by(image))
    table = {task: sum(h) / len(h) for task, h in hits.items()}
    return {"mean": sum(table.values()) / len(table), **table}


def averaged(flat: Flat, config: MiniatureConfig) -> Miniature:
    network = Miniature(config).eval()
    flat.put(flat.average, network)
    return network


def targets(teacher: Miniature | None, x: Tensor, sigma: Tensor, tokens: Tensor, velocity: Tensor) -> Tensor:
    """The velocity to regress on: the data's, or the teacher's guided one."""
    if teacher is None:
        return velocity
    with torch.no_grad():
        conditional = teacher(x, sigma, tokens).float()
        free = teacher(x, sigma, torch.zeros_like(tokens)).float()
    return free + GUIDANCE * (conditional - free)


def work(rank: int, processes: int, world: World, stage: str, seconds: float) -> None:
    """Train as one of `processes` for some seconds of wall-clock time."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    folder, config = world.folder, world.config
    path, stop = folder / "checkpoint.safetensors", folder / "stop"
    flat = Flat(config)
    progress = resume(flat, path)
    flat.put(flat.weights, flat.working)
    teacher, young = None, 0
    if stage == "distill":
        young = progress["step"]
        flat.weights.copy_(flat.average)
        flat.put(flat.average, flat.working)
        teacher = coarse(config)
        flat.put(flat.average, teacher)
    torch.manual_seed(progress["step"] * processes + rank)
    pool = Pool(world, np.random.default_rng([progress["step"], rank]))
    questions = world.questions()
    peak = world.learning_rate * (0.2 if stage == "distill" else 1)

    began = logged = saved = last = time.monotonic()
    evaluated = began - EVALUATE_EVERY / 2
    losses: list[float] = []
    since = progress["images"]
    while True:
        x0, tokens = pool.batch()
        sigma, noise = draw_sigmas(len(x0)), torch.randn_like(x0)
        level = sigma[:, None, None, None]
        x = (1 - level) * x0 + level * noise
        wanted = targets(teacher, x.bfloat16(), sigma, tokens, noise - x0)
        # Through x0, so that the network's output is all that passes through bfloat16.
        guess = flat.working.predict_x0(x.bfloat16(), sigma, tokens).float()
        error = guess - (x - level * wanted)
        loss = (error / level.clamp(min=0.1)).square().mean()
        loss.backward()

        now = time.monotonic()
        done = (now - began) / seconds
        rate = peak * min(1, (progress["step"] + 1) / WARMUP)
        if stage != "stable":
            rate *= max(FLOOR, 1 - (1 - FLOOR) * done)
        # Rank 0 alone decides on the rate and the end; its words travel with the gradients.
        words = torch.tensor([rate, float(done >= 1 or stop.exists())]) * (rank == 0)
        parcel = torch.cat([Flat.flatten(p.grad for p in flat.parameters), words])
        dist.all_reduce(parcel)
        for parameter in flat.parameters:
            parameter.grad = None
        progress["step"] += 1
        progress["images"] += world.batch_size * processes
        averaged_steps = progress["step"] - young
        flat.update(parcel[:-2] / processes, parcel[-2].item(), progress["step"], averaged_steps)
        ends = parcel[-1].item() > 0
        if rank == 0:
            losses.append(loss.item())
            progress["seconds"] += now - last
            if now - logged > LOG_EVERY:
                line = {
                    "stage": stage,
                    **progress,
                    "loss": sum(losses) / len(losses),
                    "learning_rate": rate,
                    "images_per_second": (progress["images"] - since) / (now - logged),
                }
                losses, since, logged = [], progress["images"], now
                write(folder, line)
            if ends or now - saved > SAVE_EVERY:
                save(flat, progress, path)
                saved = now
            if ends or now - evaluated > EVALUATE_EVERY:
                write(
                    folder,
                    {"stage": stage, **progress, "strict": evaluate(averaged(flat, config), questions, 1)},
                )
                evaluated = now
        last = now
        if ends:
            break
    dist.barrier()
    dist.destroy_process_group()


def write(folder: Path, line: dict) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **line}) + "\n")


def export(world: World, seeds: int) -> None:
    """Write the averaged weights as float16, and beside them what they reach."""
    flat = Flat(world.config)
    progress = resume(flat, world.folder / "checkpoint.safetensors")
    network = averaged(flat, world.config).half()
    questions = world.questions()
    table = evaluate(network.float(), questions, seeds)
    draft = world.weights.with_suffix(".draft")
    save_file(
        {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()},
        draft,
        metadata={"config": world.config.model_dump_json()},
    )
    draft.chmod(0o644)  # safetensors writes files that only their owner can read
    os.replace(draft, world.weights)
    about = {
        "images": progress["images"],
        "seconds": round(progress["seconds"]),
        "strict": {task: round(value, 4) for task, value in table.items()},
        "num_prompts": len(questions),
        "seeds": seeds,
        "euler_steps": EULER_STEPS,
        "guidance": 1.0,
        "parameters": sum(p.numel() for p in network.parameters()),
        "torch": torch.__version__,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    world.weights.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))


def main(world: World) -> None:
    parser = argparse.ArgumentParser(
        description=f"Pretrain the base of the {world.name} world, stage by stage."
    )
    parser.add_argument("stage", choices=["stable", "anneal", "distill", "evaluate", "export"])
    parser.add_argument("--seconds", type=float, default=3600, help="wall-clock time of this stage")
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--seeds", type=int, default=2, help="samples of each held-out prompt, to evaluate")
    options = parser.parse_args()
    world.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.stage == "export":
        export(world, options.seeds)
    elif options.stage == "evaluate":
        flat = Flat(world.config)
        print(resume(flat, world.folder / "checkpoint.safetensors"))
        for guidance in (1.0, GUIDANCE):
            table = evaluate(averaged(flat, world.config), world.questions(), options.seeds, guidance)
            print(f"guidance {guidance}: ", {task: round(value, 3) for task, value in table.items()})
    else:
        (world.folder / "stop").unlink(missing_ok=True)
        (world.folder / "pid").write_text(f"{os.getpid()}\n")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))
        arguments = (options.processes, world, options.stage, options.seconds)
        spawn(work, arguments, nprocs=options.processes)
