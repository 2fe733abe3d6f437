"""Students against their teachers on the embedded scenes: trained under one budget, measured on the same
prompts and noises.

    python benchmarks/students.py [--seeds 0,1,2] [--cpu-seconds 60] [--trials 1] [--out FOLDER] [name ...]

First the recipes run as in `thalweg bench`, with as many trials of their learning rates; `flow-opd` waits
for two teachers that `diffusion-nft` aligns to three tasks each. Then every model, the base and the teachers
too, draws the same held-out prompts from the same noises. What is finished is not done again. Writes
`table.md`, `results.json` and `curves.jsonl` as bench does, and `students.md` and `students.json`: a row a
model. Shapes: P prompts, N images of them, G groups.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.core.denormals import flushed_denormals
from thalweg.core.files import write_whole
from thalweg.core.values import Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.evaluation.diversity import cosine_distance
from thalweg.evaluation.features import image_features
from thalweg.evaluation.measure import spread
from thalweg.evaluation.sampling import sample_images
from thalweg.models import POLICY, Policy
from thalweg.objectives import OnPolicyDistillation, TrajectoryShaping
from thalweg.rewards.scorer import ScorerReward
from thalweg.training.bench import bench
from thalweg.training.folder.saved import load_run
from thalweg.training.policy import load_policy
from thalweg.training.recipe.load import load_recipe
from thalweg.worlds import find_world

WORLD = find_world("scenes")
PROMPTS, GROUPS, GROUP_SIZE = 300, 48, 8
LOOKS = (f"evaluation.num_prompts={PROMPTS}", "evaluation.every=25", "evaluation.diversity_prompts=12")
"""As the tables of bench have it, so that a run counts there too."""
TEACHER_STEPS = 30
"""Of a teacher that is the guided base."""
TEACHERS = "diffusion-nft"
"""The recipe of those of flow-opd."""
STUDENTS = ("dmd", "dp-dmd", "gdmd", "rats", "flow-opd")


@dataclass(frozen=True)
class Look:
    """What a model's images come to."""

    strict: Float[Tensor, " P"]
    """1 where an image is exactly right."""
    log_odds: Float[Tensor, " P"]
    """What the scorer says of it."""
    distance: Float[Tensor, " G"]
    """Mean distance inside the group of a prompt."""
    distance_of_right: Float[Tensor, " G"]
    """The same of its right images alone; NaN where there are fewer than two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(STUDENTS)}; all without")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cpu-seconds", type=float, default=60)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    names = options.names or list(STUDENTS)
    for seed in seeds:
        for name in names:
            changes = list(LOOKS)
            if name == "flow-opd":
                for teacher, weights in taught(options.cpu_seconds, options.out).items():
                    changes.append(f"weights.{teacher}.init={weights}")
                    changes.append(f"weights.{teacher}.guidance_scale=null")
            bench([name], [seed], options.cpu_seconds, options.out, changes, options.trials, say=print)
    torch.set_num_threads(1)
    with flushed_denormals():
        lines = [line for name in names for line in compared(name, seeds, options.out)]
    write_whole(options.out / "students.json", json.dumps(lines, indent=1) + "\n")
    write_whole(options.out / "students.md", table(lines))
    print(table(lines))


def taught(cpu_seconds: float, out: Path) -> dict[str, Path]:
    """The weights of each teacher of flow-opd, from the base on the prompts it teaches."""
    objective, weights = load_recipe("flow-opd").objective, dict[str, Path]()
    assert isinstance(objective, OnPolicyDistillation)
    for number, teacher in enumerate(objective.teachers):
        folder = out / teacher.weights
        folder.mkdir(parents=True, exist_ok=True)
        mine = [prompt for prompt in WORLD.training_prompts() if objective.teacher_of(prompt) == number]
        lines = [json.dumps({"text": prompt.text, **prompt.metadata}) + "\n" for prompt in mine]
        write_whole(folder / "prompts.jsonl", "".join(lines))
        changes = [f"data.prompts={folder / 'prompts.jsonl'}", *LOOKS]
        bench([TEACHERS], [0], cpu_seconds, folder, changes, say=print)
        run = load_run(folder / f"{TEACHERS}-0")
        weights[teacher.weights] = (
            run.checkpoints[-1] / f"weights.{run.recipe.evaluation.weights}.safetensors"
        )
    return weights


def compared(name: str, seeds: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """The untrained student, each of its teachers and the student, each teacher on the prompts it teaches."""
    recipe = load_run(out / f"{name}-{seeds[0]}").recipe
    settings, objective = recipe.evaluation, recipe.objective
    own = f"{settings.steps} steps"
    mine = dict[str, Tensor]()
    match objective:
        case OnPolicyDistillation():
            shown = {
                t.weights: [look(out, f"{t.weights}/{TEACHERS}-0", settings)] for t in objective.teachers
            }
            asks = torch.tensor([objective.teacher_of(prompt) for prompt in asked(PROMPTS)])
            mine = {t.weights: asks == number for number, t in enumerate(objective.teachers)}
        case TrajectoryShaping():
            longer = settings.model_copy(update={"steps": settings.steps * objective.substeps})
            shown = {
                f"base, {longer.steps} steps": [look(out, "base", longer)],
                f"trained teacher, {longer.steps} steps": [
                    look(out, f"{name}-{seed}", longer.model_copy(update={"weights": objective.teacher}))
                    for seed in seeds
                ],
            }
        case _:
            scale = recipe.weights["teacher"].guidance_scale or 1.0
            longer = settings.model_copy(update={"steps": TEACHER_STEPS})
            shown = {
                f"base, {TEACHER_STEPS} steps": [look(out, "base", longer)],
                f"teacher, guided by {scale:g}, {TEACHER_STEPS} steps": [look(out, "base", longer, scale)],
            }
    untrained = [look(out, "base", settings)]
    trained = [look(out, f"{name}-{seed}", settings) for seed in seeds]
    lines = list[dict[str, Any]]()
    for teacher, looks in shown.items():
        rows = {f"untrained, {own}": untrained, teacher: looks, f"student, {own}": trained}
        which = mine.get(teacher, torch.ones(PROMPTS, dtype=torch.bool))
        lines += [
            {"recipe": name, "model": row, "against": teacher} | measures(of, looks, which)
            for row, of in rows.items()
        ]
    return lines


def measures(of: Sequence[Look], teacher: Sequence[Look], mine: Bool[Tensor, " P"]) -> dict[str, Any]:
    """Means over seeds, their sample deviation (`/sd`), the standard error over prompts (`/se`), and the
    paired differences from the teacher's; on the prompts of `mine`, whose first G are asked for groups.
    """
    line: dict[str, Any] = {}
    for name in ("strict", "log_odds"):
        each = torch.stack([getattr(look, name)[mine] for look in of])
        theirs = torch.stack([getattr(look, name)[mine] for look in teacher]).mean(0)
        line |= {name: float(each.mean()), f"{name}/seeds": each.mean(1).tolist()}
        line[f"{name}/sd"] = statistics.stdev(each.mean(1).tolist()) if len(of) > 1 else None
        line[f"{name}/se"] = standard_error(each.mean(0))
        line[f"{name}/difference"] = float((each.mean(0) - theirs).mean())
        line[f"{name}/difference_se"] = standard_error(each.mean(0) - theirs)
    for name in ("distance", "distance_of_right"):
        each = torch.stack([getattr(look, name)[mine[:GROUPS]] for look in of]).nanmean(0)
        theirs = torch.stack([getattr(look, name)[mine[:GROUPS]] for look in teacher]).nanmean(0)
        both = ~(each - theirs).isnan()
        kept = each[both] / theirs[both].mean()
        line |= {f"{name}_kept": float(kept.mean()), f"{name}_groups": int(both.sum())}
        line[f"{name}_kept/se"] = standard_error(kept - theirs[both] / theirs[both].mean())
    return line


def standard_error(values: Float[Tensor, " N"]) -> float:
    """Of the mean; NaN of a single value."""
    if len(values) < 2:
        return math.nan
    return float(values.std()) / math.sqrt(len(values))


def look(out: Path, source: str, settings: Evaluation, guidance_scale: float = 1.0) -> Look:
    """What the base (`base`) or the run of that name draws, from a file if it was looked at before."""
    sampler = f"{settings.weights}-{settings.solver.kind}-{settings.steps}-{guidance_scale:g}"
    file = out / "looks" / f"{source.replace('/', '-')}-{sampler}.json"
    if not file.exists():
        if source == "base":
            policy = load_policy(load_recipe("diffusion-nft", [f"model.guidance_scale={guidance_scale}"]))
        else:
            policy = load_run(out / source).policy(settings.weights)
        found = drawn(policy, settings.model_copy(update={"weights": POLICY}))
        file.parent.mkdir(exist_ok=True)
        write_whole(file, json.dumps({name: values.tolist() for name, values in vars(found).items()}))
    return Look(
        **{name: torch.tensor(values) for name, values in json.loads(file.read_text("utf-8")).items()}
    )


@torch.no_grad()
def drawn(policy: Policy, settings: Evaluation) -> Look:
    """One image of each of P prompts, and a group of each of G."""
    images, prompts = sample_images(policy, asked(PROMPTS), 1, settings), asked(PROMPTS)
    groups, of = sample_images(policy, asked(GROUPS), GROUP_SIZE, settings), asked(GROUPS)
    assert isinstance(images, Tensor) and isinstance(groups, Tensor)
    features = image_features(groups).unflatten(0, (-1, GROUP_SIZE))
    right = right_of(groups, [prompt for prompt in of for _ in range(GROUP_SIZE)]).bool().view(-1, GROUP_SIZE)
    return Look(
        strict=right_of(images, prompts),
        log_odds=ScorerReward(log_odds=True).score(images, prompts),
        distance=torch.tensor([cosine_distance(group) for group in features]),
        distance_of_right=torch.tensor(
            [
                cosine_distance(group[which]) if which.sum() > 1 else math.nan
                for group, which in zip(features, right, strict=True)
            ]
        ),
    )


def right_of(images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
    """1 where the judge of the world finds nothing missing and nothing else."""
    return torch.tensor([float(WORLD.judge(i, p).strict) for i, p in zip(images, prompts, strict=True)])


def asked(count: int) -> tuple[Prompt, ...]:
    """So many held-out prompts, spread over the tasks."""
    return spread(WORLD.held_out_prompts(), count)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a model."""
    titles = [
        "recipe",
        "model",
        "strict",
        "less the teacher's",
        "log-odds",
        "less the teacher's",
        "diversity kept",
    ]
    titles += ["of right images"]
    rows = [
        [
            line["recipe"],
            line["model"],
            over_seeds(line, "strict", ".3f"),
            f"{line['strict/difference']:+.3f} ± {line['strict/difference_se']:.3f}",
            over_seeds(line, "log_odds", ".2f"),
            f"{line['log_odds/difference']:+.2f} ± {line['log_odds/difference_se']:.2f}",
            f"{line['distance_kept']:.2f} ± {line['distance_kept/se']:.2f}",
            f"{line['distance_of_right_kept']:.2f} ± {line['distance_of_right_kept/se']:.2f}",
        ]
        for line in lines
    ]
    return "".join("| " + " | ".join(row) + " |\n" for row in [titles, ["---"] * len(titles), *rows])


def over_seeds(line: Mapping[str, Any], name: str, form: str) -> str:
    """The mean, and the deviation where there are several seeds."""
    deviation = line[f"{name}/sd"]
    return f"{line[name]:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")


if __name__ == "__main__":
    main()
