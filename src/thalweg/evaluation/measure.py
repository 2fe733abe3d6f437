"""One evaluation: accuracy on held-out prompts, rewards, diversity and the monitors. Shapes: B images."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes
from thalweg.core.values import Media, Metrics, Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.evaluation.confidence import accuracy_metrics
from thalweg.evaluation.diversity import diversity_metrics
from thalweg.evaluation.features import image_features
from thalweg.evaluation.monitors import monitor_metrics
from thalweg.evaluation.sampling import sample_sizes
from thalweg.models.contract import Policy
from thalweg.rewards import Reward, score_all, total
from thalweg.worlds import World


def measure(
    policy: Policy,
    prompts: Sequence[Prompt],
    rewards: Sequence[Reward],
    world: World | None,
    evaluation: Evaluation,
    processes: Processes,
) -> Metrics:
    """Rewards, and strict accuracy where the model's world can judge."""
    made = sample_sizes(policy, prompts, evaluation.samples_per_prompt, evaluation, processes, rewards)
    asked = [p for p in prompts for _ in range(evaluation.samples_per_prompt)]
    scores = score_all(rewards, made)
    columns = {"reward": total(scores, rewards)} | {
        f"reward/{name}": values for name, values in scores.items()
    }
    samples, mine, _ = made[0]  # a world's are of one size
    images = samples.stills if isinstance(samples, Media) else samples
    if world is not None and images is not None:
        columns["strict"] = torch.tensor(
            [float(world.judge(i, p).strict) for i, p in zip(images, mine, strict=True)]
        )
    columns = processes.gather(columns)
    strict = columns.pop("strict", None)
    metrics = {name: float(values.double().nanmean()) for name, values in columns.items()}
    if strict is not None:
        right: Counter[str] = Counter()
        of: Counter[str] = Counter()
        for prompt, is_right in zip(asked, strict.tolist(), strict=True):
            of[prompt.metadata["task"]] += 1
            right[prompt.metadata["task"]] += int(is_right)
        metrics |= accuracy_metrics({task: (right[task], of[task]) for task in of})
    return metrics


def sample_groups(
    policy: Policy,
    prompts: Sequence[Prompt],
    evaluation: Evaluation,
    processes: Processes,
    rewards: Sequence[Reward] = (),
) -> Float[Tensor, "B 3 H W"]:
    """A whole group of images for each prompt, from all processes; in steps of 1/255, as a file keeps
    them. A video stands by its middle frame; images of several sizes get black margins to the largest sides.
    """
    made = sample_sizes(policy, prompts, evaluation.diversity_group, evaluation, processes, rewards)
    stills = [samples.stills if isinstance(samples, Media) else samples for samples, _, _ in made]
    pictures = [images for images in stills if images is not None]
    if not pictures:
        raise UserError(
            "evaluation.diversity_prompts: diversity is measured on images, and the model makes sound; give "
            "evaluation.diversity_prompts=0"
        )
    sides = processes.gather({"sides": torch.tensor([images.shape[2:] for images in pictures])})["sides"]
    height, width = sides.amax(0).tolist()
    order = torch.cat([rows for _, _, rows in made]).argsort()
    images = torch.cat([with_margins(images, height, width) for images in pictures])[order]
    return processes.gather({"images": (images * 255).round().byte()})["images"].float() / 255


def with_margins(images: Float[Tensor, "B 3 _ _"], height: int, width: int) -> Float[Tensor, "B 3 H W"]:
    """The images in the middle of black ones of these sides."""
    top, left = (height - images.shape[2]) // 2, (width - images.shape[3]) // 2
    below, right = height - images.shape[2] - top, width - images.shape[3] - left
    return torch.nn.functional.pad(images, (left, right, top, below))


def watch(
    images: Float[Tensor, "B 3 H W"],
    base: Float[Tensor, "B 3 H W"],
    world: World | None,
    evaluation: Evaluation,
) -> Metrics:
    """Diversity inside the groups and how far they went from the base's, from the same prompts and noises."""
    group = torch.arange(len(images)) // evaluation.diversity_group
    labels = None if world is None else ["; ".join(world.attributes(image)) for image in images]
    return diversity_metrics(image_features(images), group, labels) | monitor_metrics(images, base, group)


def spread(prompts: Sequence[Prompt], count: int | None) -> tuple[Prompt, ...]:
    """`count` of the prompts, as equally from every task as they allow, in a fixed order."""
    if count is None or count >= len(prompts):
        return tuple(prompts)
    by_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_task.setdefault(str(prompt.metadata.get("task", "")), []).append(prompt)
    chosen: list[Prompt] = []
    depth = 0
    while len(chosen) < count:
        chosen += [task[depth] for task in by_task.values() if depth < len(task)]
        depth += 1
    return tuple(chosen[:count])
