"""Images of given prompts from fixed noises, by the flow without randomness. Shapes: B images."""

from collections.abc import Sequence

from thalweg.core.errors import UserError
from thalweg.core.processes import Processes
from thalweg.core.values import Made, Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.evaluation.stepwise import sample_stepwise
from thalweg.models.contract import Policy
from thalweg.models.sizes import Decoded, decoded
from thalweg.rewards import Reward, value_of
from thalweg.rollout import Deterministic, Rollout, Root, grow


def sample_images(
    policy: Policy,
    prompts: Sequence[Prompt],
    per_prompt: int,
    evaluation: Evaluation,
    rewards: Sequence[Reward] = (),
) -> Made:
    """`per_prompt` images, or media, of each prompt, side by side; all of one size."""
    (made, _, _), *others = sample_sizes(policy, prompts, per_prompt, evaluation, rewards=rewards)
    if others:
        raise UserError("sample: the prompts ask for several sizes; sample those of one size at a time")
    return made


def sample_sizes(
    policy: Policy,
    prompts: Sequence[Prompt],
    per_prompt: int,
    evaluation: Evaluation,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
    rewards: Sequence[Reward] = (),
) -> list[Decoded]:
    """`per_prompt` images, or media, of each prompt, side by side, an entry a size; this process's share of
    them. `rewards` are those that `evaluation.stepwise` may choose by.
    """
    rollout = Rollout(
        plan=Deterministic(),
        group_size=per_prompt,
        steps=evaluation.steps,
        schedule=evaluation.schedule,
        solver=evaluation.solver,
        weights=evaluation.weights,
        finish=evaluation.finish,
        micro_batch=evaluation.micro_batch,
    )
    roots = [
        Root(prompt_slot=slot, seed_group=member, number=slot * per_prompt + member, condition=slot)
        for slot in range(len(prompts))
        for member in range(per_prompt)
    ]
    mine = [roots[i] for i in processes.share(len(roots))]
    asked = [prompts[root.condition] for root in mine]
    if evaluation.stepwise is not None:
        value = value_of(rewards, evaluation.stepwise.reward)
        sigmas = evaluation.schedule.sigmas(evaluation.steps)
        settings = {"seed": evaluation.seed, "micro_batch": evaluation.micro_batch}
        with policy.weights.use(evaluation.weights):
            latents = sample_stepwise(policy, prompts, mine, evaluation.stepwise, value, sigmas, **settings)
        return decoded(policy, latents, asked)
    forest = grow(policy, prompts, mine, rollout, seed=evaluation.seed, iteration=0)
    # Trees of a size stand together.
    latents = forest.latents[forest.leaves.sample.argsort().to(forest.latents.device)]
    return decoded(policy, latents, asked)
