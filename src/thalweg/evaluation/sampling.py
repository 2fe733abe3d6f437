"""Images of given prompts from fixed noises, by the flow without randomness. Shapes: B images."""

from collections.abc import Sequence

from thalweg.core.processes import Processes
from thalweg.core.values import Made, Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.models.contract import Policy
from thalweg.rollout import Deterministic, Rollout, Root, grow


def sample_images(
    policy: Policy,
    prompts: Sequence[Prompt],
    per_prompt: int,
    evaluation: Evaluation,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
) -> Made:
    """`per_prompt` images, or media, of each prompt, side by side; this process's share of them."""
    rollout = Rollout(
        plan=Deterministic(),
        group_size=per_prompt,
        steps=evaluation.steps,
        schedule=evaluation.schedule,
        solver=evaluation.solver,
        weights=evaluation.weights,
        micro_batch=evaluation.micro_batch,
    )
    roots = [
        Root(prompt_slot=slot, seed_group=member, number=slot * per_prompt + member, condition=slot)
        for slot in range(len(prompts))
        for member in range(per_prompt)
    ]
    share = processes.share(len(roots))
    forest = grow(policy, prompts, [roots[i] for i in share], rollout, seed=evaluation.seed, iteration=0)
    return policy.decode(forest.latents)
