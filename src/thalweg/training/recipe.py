"""Recipes: one file a method, read strictly, every problem reported with its place and the way out."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from thalweg.core.errors import UserError
from thalweg.core.names import nearest
from thalweg.core.part import Part
from thalweg.credit import Credit, DenseCredit, GroupCredit, ProcessCredit, Selection, TreeCredit
from thalweg.evaluation.benchmark import Evaluation
from thalweg.flow import Euler, LearnedVariance
from thalweg.models import POLICY, DiffusersModel, Model, from_shorthand
from thalweg.objectives import (
    AdjointMatching,
    AdjointMatchingODE,
    Balance,
    ChunkRatio,
    ClippedRatio,
    DistributionMatching,
    Forward,
    Objective,
    OnPolicyDistillation,
    RewardGradient,
    TrajectoryShaping,
)
from thalweg.objectives.adjoint import memory_of_noise
from thalweg.objectives.contract import PathwiseContract
from thalweg.objectives.routes import LastSteps, Leap
from thalweg.objectives.rules import Centred
from thalweg.objectives.sigma_draw import Grid
from thalweg.rewards import Reward, finished, judges_steps
from thalweg.rewards.world import WorldReward
from thalweg.rollout import AllSteps, Candidates, Deterministic, Rollout, Tree, Window
from thalweg.training.data import Data
from thalweg.training.optimise import Optim
from thalweg.training.replay import Replay
from thalweg.training.units import WIDE
from thalweg.training.variants import folder_of
from thalweg.training.weight_rules import Trained, WeightRule

MOST_MEMORY = 0.05
"""Correlation of a sample with its initial noise up to which a kernel counts as memoryless."""


class Run(Part):
    """The `run` section: what is kept, when to stop."""

    save_every: PositiveInt = 20
    """Iterations between checkpoints."""
    keep_last: PositiveInt = 2
    """How many checkpoints stay."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation."""
    max_seconds: PositiveFloat | None = None
    """Save and stop after this time, counted over all resumptions."""
    max_cpu_seconds: PositiveFloat | None = None
    """Save and stop after this processor time of the first process, evaluations and saving left out: a budget
    that other programs on the machine do not change."""
    invalid_rewards: Literal["raise", "drop"] = "raise"
    """A reward that is NaN stops the run, or leaves its sample out (counted as `invalid_rewards`)."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the run's folder."""


class Recipe(Part):
    """Everything that decides what a run does."""

    name: str
    title: str
    """The method, in a line."""
    paper: str
    """Where it was published."""
    claim: str = ""
    """What the publication measured against another method, in its own setting."""
    iterations: NonNegativeInt
    """Rounds of collecting and learning."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    init: str | None = None
    """Start from these weights: a run's folder, a checkpoint, or a safetensors file."""
    model: Model
    weights: dict[str, WeightRule] = Field(default_factory=dict)
    """Named sets of weights besides the policy."""
    data: Data = Data()
    rollout: Rollout
    rewards: tuple[Reward, ...]
    credit: Credit = GroupCredit()
    selection: Selection = Selection()
    """Which of the collected rows are trained on."""
    replay: Replay | None = None
    """Train on samples of earlier iterations too."""
    objective: Objective
    optim: Optim
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    def to_yaml(self) -> str:
        """Fully resolved: every value, defaults included; reads back as the same recipe."""
        return yaml.safe_dump(
            self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True, width=100
        )


def load_recipe(source: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """A recipe by name (`mix-grpo`, `flux1-dev/mix-grpo`) or file, with `key=value` overrides
    (`rollout.steps=8`, values are YAML). With `model=` a folder or a name on the hub, a name stands for its
    variant for that model, where there is one.

    Raises UserError with one line a problem.
    """
    pairs = [*overrides.items()] if isinstance(overrides, Mapping) else [_pair(text) for text in overrides]
    path = find_recipe(_variant(source, pairs))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; mend the file")
    tree = {"name": _name_of(path), **tree}
    for key, value in pairs:
        is_real = isinstance(tree.get("model"), dict) and tree["model"].get("kind") == "diffusers"
        if key == "model" and isinstance(value, str) and is_real:
            _put(tree, "model.path", value)  # the recipe's other settings of the model stay
        else:
            _put(tree, key, from_shorthand(value) if key == "model" else value)
    return check_recipe(tree, str(source))


def _variant(source: str | Path, overrides: Sequence[tuple[str, Any]]) -> str | Path:
    """The recipe's variant for the model that the overrides name, or the recipe itself."""
    model = dict(overrides).get("model")
    folder = folder_of(model) if isinstance(model, str) else None
    variant = f"{folder}/{source}"
    return variant if variant in full_size_names() else source


def _name_of(path: Path) -> str:
    """`mix-grpo`, or `flux1-dev-mix-grpo`: it begins the name of a run's folder."""
    of_model = path.parent.parent == Path(str(_shipped()))
    return f"{path.parent.name}-{path.stem}" if of_model else path.stem


class _ModelAlone(Part):
    model: Model


def load_model(overrides: Sequence[str]) -> Model:
    """The model that `model=FOLDER model.key=value ...` describes, without a recipe."""
    tree: dict[str, Any] = {}
    for key, value in map(_pair, overrides):
        _put(tree, key, from_shorthand(value) if key == "model" else value)
    try:
        return _ModelAlone.model_validate(tree).model
    except ValidationError as error:
        raise UserError(_listing("model", [_describe(p, tree) for p in error.errors()])) from None


def check_recipe(tree: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that plain values describe; raises UserError with every problem, a line each."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(problem, tree) for problem in error.errors()]
        raise UserError(_listing(source, problems)) from None
    problems = _across_sections(recipe)
    if problems:
        raise UserError(_listing(source, problems))
    return recipe


def trained_steps(rollout: Rollout, seed: int, iteration: int) -> list[int]:
    """Which denoising steps are trained in an iteration."""
    layout = rollout.layout(seed, iteration)
    return [i for i, roles in enumerate(layout) if any(c.trained for row in roles.values() for c in row)]


def recipe_names() -> list[str]:
    """Names of the shipped recipes that run as they stand, on an embedded world."""
    return sorted(p.name.removesuffix(".yaml") for p in _shipped().iterdir() if p.name.endswith(".yaml"))


def full_size_names() -> list[str]:
    """Names of the shipped recipes for real models, `model/method`: they need weights and prompts."""
    folders = [folder for folder in _shipped().iterdir() if folder.is_dir()]
    return sorted(f"{f.name}/{p.name[:-5]}" for f in folders for p in f.iterdir() if p.name.endswith(".yaml"))


def find_recipe(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"recipe '{source}': no such file")
        return path
    shipped = Path(str(_shipped())) / f"{source}.yaml"
    if not shipped.is_file():
        known = [*recipe_names(), *full_size_names()]
        raise UserError(
            f"recipe '{source}': none of that name{nearest(str(source), known)}; "
            "`thalweg methods` lists them, or give a .yaml file"
        )
    return shipped


def _shipped() -> Any:
    return resources.files("thalweg") / "recipes"


def _across_sections(recipe: Recipe) -> list[str]:
    """What no section can see alone. Repairs nothing."""
    problems = []
    known = {POLICY, *recipe.weights}
    uses = {"rollout.weights": recipe.rollout.weights, "evaluation.weights": recipe.evaluation.weights}
    if recipe.rollout.explore is not None:
        uses["rollout.explore.weights"] = recipe.rollout.explore.weights
    uses |= {f"objective, weights '{name}'": name for name in recipe.objective.anchors}
    uses |= {f"weights.{name}.from": rule.source for name, rule in recipe.weights.items()}
    for place, name in uses.items():
        if name not in known:
            problems.append(
                f"{place}: no weights are called '{name}'; add them under `weights`{nearest(name, known)}"
            )
    made = [POLICY]
    for name, rule in recipe.weights.items():
        if not re.fullmatch(r"[\w.-]+", name):
            problems.append(f"weights: '{name}' cannot name a file; use letters, digits, '.', '_' and '-'")
        if name == POLICY:
            problems.append(f"weights.{POLICY}: the name of the weights that are trained; choose another")
        if rule.source in known and rule.source not in made:
            problems.append(f"weights.{name}.from: '{rule.source}' comes later; write it above '{name}'")
        made.append(name)
    if isinstance(recipe.model, DiffusersModel):
        problems += _without_a_world(recipe)
    if isinstance(recipe.objective, ClippedRatio | ChunkRatio | Balance | OnPolicyDistillation):
        problems += _densities(recipe)
    problems += _credit_problems(recipe)
    problems += _selection_problems(recipe)
    if isinstance(recipe.objective, Forward):
        problems += _forward(recipe.objective, recipe)
    problems += _named_weights(recipe)
    if isinstance(recipe.objective, PathwiseContract):
        problems += _pathwise(recipe.objective, recipe)
    if recipe.objective.unit in WIDE:
        problems += _whole_groups(recipe)
    if recipe.evaluation.diversity_prompts and recipe.evaluation.diversity_group < 2:
        problems.append(
            f"evaluation.diversity_group={recipe.evaluation.diversity_group}: diversity is a distance of "
            "images of a prompt; give 2 or more, or diversity_prompts=0"
        )
    prompts, whole = recipe.data.prompts_per_iteration, recipe.objective.unit in WIDE
    parts = prompts if whole else prompts * recipe.rollout.group_size
    if recipe.optim.updates_per_iteration > parts:
        problems.append(
            f"optim.updates_per_iteration={recipe.optim.updates_per_iteration}: an iteration has only "
            f"{parts} {'groups, which stay whole' if whole else 'samples'}; give fewer updates"
        )
    problems += _streamed(recipe)
    names = [reward.name for reward in recipe.rewards]
    if not names:
        problems.append("rewards: empty, so there is nothing to learn; give at least one")
    elif not finished(recipe.rewards):
        problems.append(
            f"rewards: '{names[0]}' judges noisy states alone, and metrics need a reward of finished "
            "samples; add one, with weight 0 if it shall not be learned from"
        )
    if len(set(names)) < len(names):
        problems.append(f"rewards: two have the same name ({', '.join(sorted(names))}); remove one")
    return problems


def _credit_problems(recipe: Recipe) -> list[str]:
    """What a credit reads and the rollout or the rewards do not give, or give in vain."""
    rollout, credit, problems = recipe.rollout, recipe.credit, []
    siblings = isinstance(credit, ProcessCredit) and credit.compare == "siblings"
    is_compared = getattr(credit, "std", "none") != "none" or recipe.objective.unit in WIDE
    if rollout.group_size < 2 and is_compared and not siblings:
        problems.append(
            f"rollout.group_size={rollout.group_size}: a group of one has no better and no worse; "
            "give 2 or more"
        )
    if isinstance(credit, DenseCredit) != rollout.probes:
        problems.append(
            "credit.kind: 'dense' credits a step by the probes of the states around it; set "
            "rollout.probes=true"
            if not rollout.probes
            else "rollout.probes: only credit 'dense' reads them, and they cost passes; leave them out"
        )
    if isinstance(credit, TreeCredit) and not isinstance(rollout.plan, Tree):
        problems.append(
            f"credit.kind: 'tree' credits the edges of a tree, and the plan '{rollout.plan.kind}' "
            "grows none; use "
            "the plan tree, or credit 'group'"
        )
    of_steps = [reward.name for reward in recipe.rewards if judges_steps(reward)]
    if isinstance(credit, ProcessCredit) and credit.process_weight and not of_steps:
        problems.append(
            "credit.kind: 'process' reads a reward of noisy states; add one, such as "
            "{kind: scorer, at: steps}"
        )
    if of_steps and not isinstance(credit, ProcessCredit):
        guided = rollout.guidance.reward if rollout.guidance else None
        problems += [
            f"rewards: '{name}' judges noisy states, which only credit 'process' and rollout.guidance read; "
            "change credit.kind"
            for name in of_steps
            if name != guided
        ]
    if isinstance(rollout.plan, Candidates) and not siblings:
        problems.append(
            "rollout.plan.kind: 'candidates' end where they are judged; use credit {kind: process, compare: "
            "siblings}"
        )
    if rollout.guidance is not None and rollout.guidance.reward not in of_steps:
        problems.append(
            f"rollout.guidance.reward='{rollout.guidance.reward}': no reward of noisy states is called that"
            f"{nearest(rollout.guidance.reward, of_steps) if of_steps else ''}; add one, such as "
            "{kind: scorer, at: steps}"
        )
    return problems


def _selection_problems(recipe: Recipe) -> list[str]:
    """What cannot be chosen, replayed or trained on as it was drawn."""
    rollout, objective, chosen, problems = recipe.rollout, recipe.objective, recipe.selection, []
    on_path = isinstance(objective, ClippedRatio | ChunkRatio | Balance | OnPolicyDistillation)
    of_steps = {
        "step_weight": chosen.step_weight != "uniform",
        "sigma_min": chosen.sigma_min > 0,
        "depth_prune": chosen.depth_prune is not None,
        "width_prune": chosen.width_prune != "none",
        "equal_levels": chosen.equal_levels,
    }
    problems += [
        f"selection.{name}: acts on trained steps, and objective '{objective.kind}' trains whole "
        "samples; leave it out"
        for name, is_set in of_steps.items()
        if is_set and not on_path
    ]
    if on_path and rollout.plan.stochastic:
        trained = torch.tensor(trained_steps(rollout, recipe.seed, 0))
        sigma = rollout.sigmas(recipe.seed, 0)[trained]
        if not chosen.keeps_step(trained, sigma, 0).any():
            problems.append(
                f"selection: sigma_min={chosen.sigma_min:g} and depth_prune leave out all trained steps "
                f"{trained.tolist()} of the first iteration; keep some"
            )
    if chosen.width_prune != "none" and not isinstance(rollout.plan, Tree):
        problems.append(
            f"selection.width_prune: prunes a tree, and the plan '{rollout.plan.kind}' grows none; "
            "leave it out"
        )
    if chosen.best_of is not None and chosen.best_of > rollout.group_size:
        problems.append(
            f"selection.best_of={chosen.best_of}: a prompt has only {rollout.group_size} samples; give fewer"
        )
    if isinstance(objective, ChunkRatio | Balance) and (
        chosen.trained_fraction < 1
        or chosen.sigma_min > 0
        or chosen.depth_prune is not None
        or not isinstance(rollout.plan, AllSteps | Window)
        or getattr(rollout.plan, "per_prompt", False)
    ):
        problems.append(
            f"objective.kind: '{objective.kind}' needs every sample to train the same steps in a row; "
            "use the plan all_steps or window, without per_prompt, and no selection of steps"
        )
    if recipe.replay is not None and not (
        isinstance(objective, ClippedRatio)
        and objective.old_log_prob == "recompute"
        and not objective.keeps_mean
    ):
        problems.append(
            "replay: rows of earlier iterations need log-probs computed again; use objective 'clipped_ratio' "
            "with old_log_prob=recompute, without the options that compare with the rollout's means"
        )
    if rollout.perturbation is not None and on_path:
        problems.append(
            "rollout.perturbation: samples are drawn under other conditions than training sees, so "
            "their steps have another density; use an objective over finished samples, such as nft "
            "(objective.kind=forward with rule.kind=implicit)"
        )
    if rollout.explore is not None and not isinstance(rollout.plan, Deterministic):
        problems.append(
            "rollout.explore: a sample can be drawn again from its initial noise alone only where no step is "
            "drawn; use the plan deterministic"
        )
    return problems


def _streamed(recipe: Recipe) -> list[str]:
    """What needs all prompts at once."""
    data, problems = recipe.data, []
    if not data.streaming:
        return []
    if data.prompts in ("training", "held_out"):
        problems.append(f"data.streaming: '{data.prompts}' of a world are few; leave it out")
    if any(isinstance(reward, WorldReward) for reward in recipe.rewards):
        problems.append(
            "data.streaming: the judge of an embedded world looks at all prompts at the start; leave it out"
        )
    if recipe.evaluation.prompts == "data" and recipe.evaluation.num_prompts is None:
        problems.append("evaluation.num_prompts: none, and the prompts of 'data' are streamed; give a number")
    return problems


def _without_a_world(recipe: Recipe) -> list[str]:
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


def _forward(objective: Forward, recipe: Recipe) -> list[str]:
    """What keeps a forward objective from its noise levels, its noise or its anchors."""
    problems, sigmas = [], objective.sigmas
    if recipe.rollout.plan.stochastic and objective.noise == "rollout":
        problems.append(
            f"objective.noise='rollout': the plan '{recipe.rollout.plan.kind}' draws more noise than a "
            "sample starts from; use the plan deterministic, or noise=fresh"
        )
    if isinstance(sigmas, Grid):
        levels = len(sigmas.candidates(len(recipe.rollout.sigmas(recipe.seed, 0)) - 1))
        if sigmas.num_sigmas > levels:
            problems.append(
                f"objective.sigmas.num_sigmas={sigmas.num_sigmas}: the rollout has only {levels} levels to "
                "draw from; give fewer, a larger noisy_fraction, or a smaller skip"
            )
    return problems


def _pathwise(objective: Any, recipe: Recipe) -> list[str]:
    """What keeps a pathwise objective from its states, its sampling steps or the reward's gradient."""
    problems, rollout, kind = [], recipe.rollout, objective.kind
    if objective.reads_reward:
        problems += [
            f"rewards: '{reward.name}' has no gradient, and objective '{kind}' learns from nothing else; "
            "use rewards that have one, such as {kind: scorer}"
            for reward in recipe.rewards
            if not getattr(reward, "differentiable", False)
        ]
        if isinstance(recipe.model, DiffusersModel):
            problems.append(
                f"objective.kind: '{kind}' needs the gradient of decoding, and a diffusers model hands none "
                "back yet; use another objective"
            )
    if not isinstance(rollout.solver, Euler):
        problems.append(
            f"rollout.solver: '{rollout.solver.kind}', and objective '{kind}' takes the steps of euler up "
            "again; use euler"
        )
    follows = isinstance(
        objective, RewardGradient | AdjointMatchingODE | DistributionMatching | TrajectoryShaping
    )
    if follows and rollout.plan.stochastic:
        problems.append(
            f"objective.kind: '{kind}' follows the flow, and the plan '{rollout.plan.kind}' draws steps; use "
            "the plan deterministic"
        )
    steps = len(rollout.sigmas(recipe.seed, 0)) - 1
    place, last = "objective", objective
    if isinstance(objective, RewardGradient):
        place, last = "objective.route", objective.route
        if isinstance(last, Leap) and steps < 2:
            problems.append(f"rollout.steps={steps}: two leaps start from two steps; give 2 or more")
    if (
        isinstance(last, LastSteps | AdjointMatchingODE | DistributionMatching)
        and (last.num_steps or 0) > steps
    ):
        problems.append(
            f"{place}.num_steps={last.num_steps}: the rollout has only {steps} steps; give fewer, or null "
            "for all"
        )
    if isinstance(objective, DistributionMatching) and objective.diversity is not None and steps < 2:
        problems.append(
            f"rollout.steps={steps}: with objective.diversity the first step is not matched; give 2 or more"
        )
    if isinstance(objective, AdjointMatching):
        problems += _memoryless(objective, recipe)
    return problems


def _named_weights(recipe: Recipe) -> list[str]:
    """What named weights cannot be, and what an objective needs them to be."""
    problems, objective = [], recipe.objective
    learning = [name for name, rule in recipe.weights.items() if isinstance(rule.update, Trained)]
    if isinstance(recipe.model, DiffusersModel):
        problems += [
            f"weights.{name}.guidance_scale={rule.guidance_scale}: a diffusers model guides all its weights "
            "alike; leave it out"
            for name, rule in recipe.weights.items()
            if rule.guidance_scale is not None
        ]
    if isinstance(objective, DistributionMatching):
        if objective.fake in recipe.weights and objective.fake not in learning:
            problems.append(
                f"weights.{objective.fake}.update: objective '{objective.kind}' needs weights that learn the "
                "samples; use {kind: trained, optim: {learning_rate: ...}}"
            )
        if objective.teacher in learning:
            problems.append(f"weights.{objective.teacher}.update: a teacher does not learn; use frozen")
    if isinstance(objective, OnPolicyDistillation | PathwiseContract) and recipe.selection.drop_zero:
        problems.append(
            f"selection.drop_zero: objective '{objective.kind}' learns from samples of advantage 0 too; give "
            "false"
        )
    return problems


def _memoryless(objective: AdjointMatching, recipe: Recipe) -> list[str]:
    """What ties a sample to its initial noise, which would bias the density that adjoint matching ends in."""
    rollout, problems = recipe.rollout, []
    kernel, sigmas = rollout.kernel, rollout.sigmas(recipe.seed, 0)
    if not isinstance(rollout.plan, AllSteps) or kernel is None or isinstance(kernel, LearnedVariance):
        return [
            "objective.kind: 'adjoint_matching' needs every step but the last drawn, by a kernel of known "
            "noise; use the plan all_steps, kernel {kind: ddim}"
        ]
    if objective.num_steps > len(sigmas) - 2:
        problems.append(
            f"objective.num_steps={objective.num_steps}: the rollout draws only {len(sigmas) - 2} steps; "
            "give fewer"
        )
    memory = memory_of_noise(kernel, sigmas)
    if abs(memory) > MOST_MEMORY:
        problems.append(
            f"rollout.kernel: '{kernel.kind}' leaves a correlation of {memory:.2f} between samples and their "
            "initial noise, which biases adjoint matching; use {kind: ddim, noise_level: 1}, which forgets it"
        )
    return problems


def _whole_groups(recipe: Recipe) -> list[str]:
    """What would take samples out of a group whose loss spans all of them."""
    objective, credit, chosen, problems = recipe.objective, recipe.credit, recipe.selection, []
    spans = f"objective '{objective.kind}' compares the samples of a prompt"
    if isinstance(credit, GroupCredit) and credit.group_by != ("prompt",):
        problems.append(f"credit.group_by={list(credit.group_by)}: {spans}; use [prompt]")
    if chosen.trained_fraction < 1 and isinstance(objective, Forward):
        problems.append(
            f"selection.trained_fraction={chosen.trained_fraction}: {spans} at the same levels; give 1"
        )
    if _needs_every_sample(objective) and (chosen.drop_zero or chosen.best_of is not None):
        named = "drop_zero" if chosen.drop_zero else "best_of"
        problems.append(
            f"selection.{named}: {spans}, those of advantage 0 too; give "
            f"{'false' if chosen.drop_zero else 'none'}"
        )
    return problems


def _needs_every_sample(objective: Objective) -> bool:
    """Whether a sample of advantage 0 has a part in the loss of its group."""
    return isinstance(objective, Balance) or (
        isinstance(objective, Forward) and isinstance(objective.rule, Centred)
    )


def _densities(recipe: Recipe) -> list[str]:
    """What keeps the trained steps from having a density, or from filling the objective's chunks."""
    objective, rollout = recipe.objective, recipe.rollout
    trained = trained_steps(rollout, recipe.seed, 0)
    if not rollout.plan.stochastic or rollout.kernel is None:
        return [
            f"objective.kind: '{objective.kind}' needs the densities of drawn steps, and the plan "
            f"'{rollout.plan.kind}' draws none; choose another plan or objective"
        ]
    problems = []
    sigmas = rollout.sigmas(recipe.seed, 0)
    nowhere = torch.zeros(len(sigmas) - 1, 1)
    std = rollout.kernel.transition(nowhere, nowhere, sigmas[:-1], sigmas[1:]).std
    silent = [step for step in trained if not std[step] > 0]
    if silent:
        problems.append(
            f"rollout.kernel: '{rollout.kernel.kind}' draws step {silent[0]} without noise, so it has no "
            "density to train on; give a larger noise_level"
        )
    if isinstance(objective, ChunkRatio) and sum(objective.chunks) != len(trained):
        problems.append(
            f"objective.chunks={list(objective.chunks)} adds up to {sum(objective.chunks)} steps, but the "
            f"rollout trains {len(trained)}; make them equal"
        )
    return problems


def _listing(source: str, problems: list[str]) -> str:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return "\n".join([f"{source}: {count}", *(f"  {p}" for p in problems)])


def _pair(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"'{text}': an override is key=value, such as rollout.steps=8")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"'{text}': the value is not YAML; quote it") from None


def _put(tree: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    at = tree
    for name in parents:
        if isinstance(at, list) and name.isdigit() and int(name) < len(at):
            at = at[int(name)]
            continue
        if not isinstance(at, dict):
            raise UserError(f"'{key}': '{name}' has no parts; look at the recipe with --dry-run")
        if not isinstance(at.get(name), dict | list):
            at[name] = {}
        at = at[name]
    if isinstance(at, list) and last.isdigit() and int(last) < len(at):
        at[int(last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise UserError(f"'{key}': nothing there to set; look at the recipe with --dry-run")


def _describe(problem: Any, tree: Any) -> str:
    """One line: place, value, rule, way out."""
    place = _place(problem["loc"], tree)
    where = ".".join(str(part) for part in place) or "recipe"
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        model = _section(place[:-1], tree)
        name = model.__name__ if model else "this section"
        known = list(model.model_fields) if model else []
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = (
            f"; did you mean '{close[0]}'?"
            if close
            else f"; its keys are {', '.join(known)}"
            if known
            else ""
        )
        return f"{where}: no such key in {name}{hint}"
    if kind == "missing":
        return f"{where}: missing; it has no default, so give one"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = problem["ctx"]
        options = [tag.strip("' ") for tag in context.get("expected_tags", "").split(",")]
        tag = context.get("tag")
        if tag is None:
            return f"{where}.kind: missing; give a mapping with `kind`" + (
                f", one of {options}" if options != [""] else ""
            )
        close = difflib.get_close_matches(str(tag), options, n=1)
        return f"{where}.kind: '{tag}' is not one of {options}" + (
            f"; did you mean '{close[0]}'?" if close else ""
        )
    if kind.startswith(("float_", "int_", "bool_", "string_")) and kind.endswith(("_parsing", "_type")):
        wanted = {"float": "a number", "int": "a whole number", "bool": "true or false", "string": "text"}
        return f"{where}: expected {wanted[kind.split('_')[0]]}, got {given!r}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    shown = "" if isinstance(given, dict | list | BaseModel) or kind == "value_error" else f", got {given!r}"
    return f"{where}: {message[0].lower() + message[1:]}{shown}"


def _place(loc: Sequence[Any], tree: Any) -> list[Any]:
    """Where the user wrote it: pydantic also names the chosen kind of every union on the way."""
    place: list[Any] = []
    at: Any = tree
    for part in loc:
        if isinstance(at, Mapping) and part not in at and part == at.get("kind"):
            continue
        place.append(part)
        inside = isinstance(at, Mapping) and part in at
        at = at[part] if inside or (isinstance(at, Sequence) and isinstance(part, int)) else None
    return place


def _section(place: Sequence[Any], tree: Any) -> type[BaseModel] | None:
    """The config class at a place of the tree, by the `kind` that stands there."""
    model: type[BaseModel] | None = Recipe
    at = tree
    for part in place:
        at = at.get(part) if isinstance(at, Mapping) else at[part] if isinstance(at, Sequence) else None
        if isinstance(part, int):
            kinds: Sequence[type[BaseModel]] = [m for m in _ALL_PARTS if _kind_of(m) is not None]
        else:
            field = model.model_fields.get(str(part)) if model else None
            kinds = _classes(field.annotation, getattr(field, "metadata", ())) if field else []
        kind = at.get("kind") if isinstance(at, Mapping) else None
        named = [m for m in kinds if _kind_of(m) == kind and kind is not None]
        model = named[0] if named else kinds[0] if len(kinds) == 1 else None
    return model


def _classes(annotation: Any, metadata: Any = ()) -> list[type[BaseModel]]:
    """Config classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _classes(a)]


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return None if field is None else field.default


def _walk_parts(model: type[BaseModel], seen: dict[type[BaseModel], None]) -> list[type[BaseModel]]:
    if model not in seen:
        seen[model] = None
        for field in model.model_fields.values():
            for inner in _classes(field.annotation):
                _walk_parts(inner, seen)
    return list(seen)


_ALL_PARTS = _walk_parts(Recipe, {})
