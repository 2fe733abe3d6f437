"""Real families, sampled by workers of a Ray cluster."""

import pytest

from models.diffusers.test_training import settings_of
from thalweg.training.loop import train
from thalweg.training.recipe.load import load_recipe
from training.distribution.test_processes import PROPORTIONAL, assert_close_runs
from training.ray_cluster import becomes_free, cluster

__all__ = ["cluster", "settings_of"]

WORKERS = {"parallel.workers.count": 2, "parallel.workers.cpus_per_worker": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "name", "changes"),
    [
        ("flow-grpo", "sd3", {}),
        ("diffusion-nft", "wan_two_networks", {}),
        ("mix-grpo", "flux", {"rollout.plan.size": 1}),
    ],
)
def test_workers_sample_with_the_adapters_of_the_run(recipe, name, changes, settings_of, cluster, tmp_path):
    common = settings_of(name) | PROPORTIONAL | {"rewards": ["brightness"], "iterations": 3}
    # Adapters move so far that samples tell whether the workers have them.
    common |= {"optim.learning_rate": 100.0, "evaluation.every": 0, **changes}
    train(load_recipe(recipe, common), tmp_path / "here")
    train(load_recipe(recipe, common | WORKERS), tmp_path / "there")
    assert_close_runs(tmp_path / "here", tmp_path / "there")
    assert becomes_free(cluster)
