"""Images of given prompts from fixed noises, by the flow without randomness. Shapes: B images."""

from collections.abc import Sequence

from thalweg.core.processes import Processes
from thalweg.core.values import Made, Prompt
from thalweg.evaluation.benchmark import Evaluation
from thalweg.evaluation.stepwise import sample_stepwise
from thalweg.models.contract import Policy
from thalweg.rewards import Reward, value_of
from thalweg.rollout import Deterministic, Rollout, Root, grow


def sample_images(
    policy: Policy,
    prompts: Sequence[Prompt],
    per_prompt: int,
    evaluation: Evaluation,
    processes: Processes = Processes(),  # noqa: B008  (frozen)
    rewards: Sequence[Reward] = (),
) -> Made:
    """`per_prompt` images, or media, of each prompt, side by side; this process's share of them. `rewards`
    are those that `evaluation.stepwise` may choose by.
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
    if evaluation.stepwise is not None:
        value = value_of(rewards, evaluation.stepwise.reward)
        sigmas = evaluation.schedule.sigmas(evaluation.steps)
        settings = {"seed": evaluation.seed, "micro_batch": evaluation.micro_batch}
        with policy.weights.use(evaluation.weights):
            latents = sample_stepwise(policy, prompts, mine, evaluation.stepwise, value, sigmas, **settings)
        return policy.decode(latents)
    forest = grow(policy, prompts, mine, rollout, seed=evaluation.seed, iteration=0)
    return policy.decode(forest.latents)
