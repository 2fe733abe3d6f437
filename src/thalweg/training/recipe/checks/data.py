"""Where prompts come from, and what needs all of them at once."""

from thalweg.models import DiffusersModel, MiniatureModel, SoundingModel
from thalweg.rewards.scorer import ScorerReward
from thalweg.rewards.world import WorldReward
from thalweg.training.recipe.schema import Recipe


def streamed(recipe: Recipe) -> list[str]:
    """What needs all prompts at once."""
    data, problems = recipe.data, []
    if not data.streaming:
        return []
    if data.prompts in ("training", "held_out"):
        problems.append(f"data.streaming: '{data.prompts}' of a world are few; leave it out")
    if isinstance(recipe.model, DiffusersModel) and recipe.model.release_encoders:
        problems.append(
            "data.streaming: model.release_encoders encodes all prompts at the start; leave one of them out"
        )
    if any(isinstance(reward, WorldReward) for reward in recipe.rewards):
        problems.append(
            "data.streaming: the judge of an embedded world looks at all prompts at the start; leave it out"
        )
    if recipe.evaluation.prompts == "data" and recipe.evaluation.num_prompts is None:
        problems.append("evaluation.num_prompts: none, and the prompts of 'data' are streamed; give a number")
    return problems


def without_a_world(recipe: Recipe) -> list[str]:
    """What an embedded world would have brought along."""
    prompts = {"data.prompts": recipe.data.prompts, "evaluation.prompts": recipe.evaluation.prompts}
    problems = [
        f"{key}='{source}': this model has no prompts of its own; give a .txt, .jsonl or .parquet "
        "file, or a dataset"
        for key, source in prompts.items()
        if source in ("training", "held_out")
    ]
    if any(isinstance(reward, WorldReward) for reward in recipe.rewards):
        problems.append(
            "rewards: the judge of an embedded world reads that world's images only; give others, such as "
            "rewards=[jpeg_size] or module:function"
        )
    return problems


def of_another_world(model: MiniatureModel | SoundingModel, recipe: Recipe) -> list[str]:
    """Judges who do not know what the model draws."""
    return [
        f"rewards: '{reward.name}' judges samples of the world '{reward.world}', and the model makes those "
        f"of '{model.world}'; give rewards=[{model.world}], or model.world={reward.world}"
        for reward in recipe.rewards
        if isinstance(reward, WorldReward | ScorerReward) and reward.world != model.world
    ]
