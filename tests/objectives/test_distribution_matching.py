"""Distribution matching against closed forms of Gaussians and finite differences."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from objectives.nonlinear_field import NonlinearField, paths, slope_by_differences, slope_of
from thalweg.core.values import Prompt
from thalweg.flow import Uniform
from thalweg.objectives import DistributionMatching
from thalweg.objectives.distribution_matching import Diversity
from thalweg.objectives.guided_targets import Guide
from thalweg.rollout import Deterministic, Rollout, Root, grow

GENERATOR = torch.Generator().manual_seed(0)
WAY = (1.0, 0.6, 0.3, 0.0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def rows_of(field, way=WAY, level=0.5, count=3):
    """The field's own samples from noise, with a draw of t and ε."""
    noise, epsilon = normal(count, 2), normal(count, 2)
    sigmas, states = torch.tensor([way] * count, dtype=torch.float64), [noise]
    with torch.no_grad():
        for at, to in zip(sigmas[:, :-1].T, sigmas[:, 1:].T, strict=True):
            states.append(states[-1] + (to - at)[:, None] * field.velocity(states[-1], at))
    start = states[0]
    column = torch.full((count, 1), level, dtype=torch.float64)
    return paths(torch.stack([start, noise, states[-1], epsilon], 1), torch.cat([column, sigmas], 1))


def direction_of(field, rows):
    """g by the formula, from the named velocities."""
    x0, epsilon, level = rows.states[:, 2], rows.states[:, 3], rows.sigmas[:, :1]
    x = (1 - level) * x0 + level * epsilon
    real, fake = (x - level * field.velocity_of(name, x, level[:, 0]) for name in ("teacher", "fake"))
    return (fake - real) / (x - real).abs().mean(1, keepdim=True)


def test_the_gradient_carries_the_direction_through_all_steps():
    field = NonlinearField(0.7, teacher=0.2, fake=0.9)
    rows = rows_of(field)
    direction = direction_of(field, rows)
    objective = DistributionMatching()

    def along() -> torch.Tensor:
        x = rows.states[:, 0]
        for at, to in pairwise(WAY):
            x = x + (to - at) * field.velocity(x, torch.full((3,), at))
        return (direction * x).mean(1).sum()

    slope = slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field)
    assert abs(slope) > 1e-3
    assert_close(slope, slope_by_differences(along, field), rtol=1e-6, atol=1e-9)
    terms, report = objective.path_loss(field, rows)
    assert_close(terms.detach(), direction.square().mean(1) / 2)
    assert_close(report["direction"], direction.square().mean(1).sqrt())


def test_a_fake_score_that_is_the_teachers_asks_for_nothing():
    field = NonlinearField(0.7, teacher=0.4, fake=0.4)
    rows = rows_of(field)
    assert slope_of(lambda: DistributionMatching().path_loss(field, rows)[0].sum(), field) == 0


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_a_step_against_the_gradient_moves_samples_from_the_fakes_mean_to_the_teachers(level):
    # Data N(m, 1): x̂0 = m + (1-t)/D (x_t - (1-t) m), so x̂_F - x̂_T = (m_F - m_T) t²/D.
    class Means(NonlinearField):
        @staticmethod
        def of(theta, x, sigma):
            level = sigma.to(x).view(-1, 1)
            spread = (1 - level) ** 2 + level**2
            return -theta + (2 * level - 1) / spread * (x - (1 - level) * theta)

    field = Means(0.0, teacher=2.0, fake=0.5)
    rows = rows_of(field, level=level)
    x = (1 - level) * rows.states[:, 2] + level * rows.states[:, 3]
    spread = (1 - level) ** 2 + level**2
    real = 2.0 + (1 - level) / spread * (x - (1 - level) * 2.0)
    expected = (0.5 - 2.0) * level**2 / spread / (x - real).abs().mean(1, keepdim=True)
    assert (expected < 0).all()
    assert_close(direction_of(field, rows), expected.expand(3, 2))
    assert_close(DistributionMatching().path_loss(field, rows)[1]["direction"], -expected[:, 0])


class FirstAndLater(NonlinearField):
    """θ acts at σ = 1 alone; teachers do not know θ."""

    def velocity(self, x, sigma, *, recompute=False):
        return torch.where(sigma.to(x)[:, None] == 1, self.theta + 0 * x, 0.5 * x)


@pytest.mark.parametrize("steps", [1, 4])
def test_with_diversity_the_teacher_alone_trains_the_first_step(steps):
    field = FirstAndLater(0.3, teacher=0.2, fake=0.9)
    rows = rows_of(field, way=WAY[1:])
    diversity = Diversity(weight=0.1, teacher_steps=4, num_steps=steps)
    objective = DistributionMatching(diversity=diversity)
    noise = x = rows.states[:, 1]
    for at in (1.0, 0.75, 0.5, 0.25)[:steps]:
        x = x - 0.25 * field.velocity_of("teacher", x, torch.full((3,), at))
    target = (noise - x) / (0.25 * steps)
    slope = slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field)
    assert_close(slope, float(0.1 * 2 * (0.3 - target).mean(1).sum()))
    report = objective.path_loss(field, rows)[1]
    assert_close(report["first_step_error"], (0.3 - target).square().mean(1))


def test_plain_matching_trains_the_first_step_too():
    field = FirstAndLater(0.3, teacher=0.2, fake=0.9)
    rows = rows_of(field)
    assert abs(slope_of(lambda: DistributionMatching().path_loss(field, rows)[0].sum(), field)) > 1e-3


def test_rows_begin_where_the_gradient_does(linear_policy):
    policy = linear_policy((2,))
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=4, schedule=Uniform())
    roots = [Root(0, g, g, 0) for g in range(2)]
    forest = grow(policy, [Prompt("a")], roots, rollout, seed=0, iteration=0, keep_states=True)
    advantages = forest.advantages(torch.zeros(2, 1))
    for objective, first in (
        (DistributionMatching(), 0),
        (DistributionMatching(diversity=Diversity()), 1),
        (DistributionMatching(num_steps=1), 3),
    ):
        rows = objective.experience(forest, advantages, seed=0, iteration=0)
        assert_close(rows.states[:, :3], forest.paths[:, [first, 0, 4]])
        assert rows.sigmas[0, 1:].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0][first:]
        assert ((rows.sigmas[:, 0] >= 0.02) & (rows.sigmas[:, 0] <= 0.98)).all()
    other = objective.experience(forest, advantages, seed=0, iteration=1)
    assert not torch.equal(other.states[:, 3], rows.states[:, 3])


class Valued(NonlinearField):
    """Samples are worth what `worth` says."""

    worth = staticmethod(lambda latents: torch.zeros(len(latents)))

    def reward(self, latents, wording="{}"):
        assert not latents.requires_grad  # rewards of targets need no gradient
        return self.worth(latents)


def guided_rows(field, count=3):
    """Rows with three draws of (t, ε), and the direction of each."""
    rows = rows_of(field, count=count)
    noise = normal(count, 3, 2)
    levels = torch.tensor([[0.2, 0.5, 0.9]] * count, dtype=torch.float64)
    states = torch.cat([rows.states[:, :3], noise], 1)
    each = [
        paths(torch.cat([rows.states[:, :3], noise[:, k : k + 1]], 1), levels[:, k : k + 1]) for k in range(3)
    ]
    directions = [direction_of(field, one) for one in each]
    return paths(states, torch.cat([levels, rows.sigmas[:, 1:]], 1)), torch.stack(directions, 1)


def test_targets_of_equal_worth_leave_the_mean_of_plain_matching():
    field = Valued(0.7, teacher=0.2, fake=0.9)
    rows, directions = guided_rows(field)
    terms, report = DistributionMatching(guide=Guide(num_targets=3)).path_loss(field, rows)
    assert_close(terms.detach().double(), directions.square().mean((1, 2)) / 2)
    assert_close(report["direction"], directions.square().mean(2).sqrt().mean(1))
    assert report["target_reward"].abs().max() == 0


def test_targets_of_more_worth_count_for_more():
    field = Valued(0.7, teacher=0.2, fake=0.9)
    rows, directions = guided_rows(field)
    targets = rows.states[:, 2, None] - directions
    worth = targets[..., 0]  # the first latent element
    field.worth = lambda latents: latents[:, 0]
    guide = Guide(num_targets=3, weight=0.5, advantage_max=2.0, std_floor=1e-6)
    terms, report = DistributionMatching(guide=guide).path_loss(field, rows)
    advantage = (worth - worth.mean(1, keepdim=True)) / worth.std(1, correction=0, keepdim=True)
    counts = 1 + 0.5 * advantage.clamp(-2, 2) / 2
    assert_close(terms.detach(), (counts * directions.square().mean(2)).mean(1) / 2)
    assert_close(report["target_reward"], worth.mean(1))
    assert ((counts.argmax(1) == worth.argmax(1)) & (counts.argmin(1) == worth.argmin(1))).all()


def test_the_gradient_carries_the_weighed_directions():
    field = Valued(0.7, teacher=0.2, fake=0.9)
    rows, directions = guided_rows(field)
    field.worth = lambda latents: latents[:, 0]
    objective = DistributionMatching(guide=Guide(num_targets=3, std_floor=1e-6))
    counts = objective.guide.counts((rows.states[:, 2, None] - directions)[..., 0])
    along = (counts[..., None] * directions).mean(1)

    def forward() -> torch.Tensor:
        x = rows.states[:, 0]
        for at, to in pairwise(WAY):
            x = x + (to - at) * field.velocity(x, torch.full((3,), at))
        return (along * x).mean(1).sum()

    slope = slope_of(lambda: objective.path_loss(field, rows)[0].sum(), field)
    assert_close(slope, slope_by_differences(forward, field), rtol=1e-6, atol=1e-9)


def test_a_guide_draws_as_many_levels_and_noises_as_targets(linear_policy):
    policy = linear_policy((2,))
    rollout = Rollout(plan=Deterministic(), group_size=2, steps=4, schedule=Uniform())
    roots = [Root(0, g, g, 0) for g in range(2)]
    forest = grow(policy, [Prompt("a")], roots, rollout, seed=0, iteration=0, keep_states=True)
    objective = DistributionMatching(guide=Guide(num_targets=5))
    rows = objective.experience(forest, forest.advantages(torch.zeros(2, 1)), seed=0, iteration=0)
    assert rows.states.shape == (2, 3 + 5, 2) and rows.sigmas.shape == (2, 5 + 5)
    assert len(rows.sigmas[:, :5].unique()) == 10 and len(rows.states[:, 3:].unique()) == 20


@pytest.mark.parametrize("floor", [0.1, 1e-9])
def test_rewards_closer_than_the_floor_count_less(floor):
    counts = Guide(num_targets=2, advantage_max=1.0, std_floor=floor).counts(torch.tensor([[0.0, 0.02]]))
    # The standard deviation is .01: A = ±1, or ±.1 over a floor of .1.
    expected = 0.1 if floor == 0.1 else 1.0
    assert_close(counts, torch.tensor([[1 - expected, 1 + expected]]))


class TwoModes(NonlinearField):
    """Samples of two steps whose first adds θ; the teacher's are near -1 and 1, the fake score is exact."""

    WIDTH = 0.1
    QUANTILES = torch.special.ndtri((torch.arange(100, dtype=torch.float64) + 0.5) / 100)

    @classmethod
    def _teacher(cls, x, sigma):
        level = sigma.to(x).view(-1, 1)
        variance = (1 - level) ** 2 * cls.WIDTH**2 + level**2
        mode = torch.tanh((1 - level) * x / variance)
        return (x - mode - (1 - level) * cls.WIDTH**2 / variance * (x - (1 - level) * mode)) / level

    def velocity(self, x, sigma, *, recompute=False):
        return torch.where(sigma.to(x)[:, None] == 1, x + self.theta, self._teacher(x, sigma))

    def half_way(self, noise):
        return noise - 0.5 * self.velocity(noise, torch.ones(len(noise)))

    def samples(self, noise):
        half = self.half_way(noise)
        return half - 0.5 * self.velocity(half, torch.full((len(noise),), 0.5))

    def velocity_of(self, name, x, sigma):
        if name == "teacher":
            return self._teacher(x, sigma)
        level = sigma.to(x).view(-1, 1)
        own = self.samples(self.QUANTILES[:, None]).detach()[:, 0]
        share = (-(x - (1 - level) * own).square() / (2 * level**2)).softmax(1)
        return (x - (share * own).sum(1, keepdim=True)) / level

    def share_of_the_upper_mode(self):
        return float((self.samples(self.QUANTILES[:, None]) > 0).double().mean())


def taught(objective, start, rate, updates, first):
    """After gradient descent from θ = start; `first`: the step that the objective's paths begin with."""
    field, generator, count = TwoModes(start), torch.Generator().manual_seed(0), 32
    noise = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    way = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)[first:].expand(count, -1)
    for _ in range(updates):
        epsilon = torch.randn(count, 1, dtype=torch.float64, generator=generator)
        level = 0.02 + 0.96 * torch.rand(count, 1, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            begin = (noise, field.half_way(noise))[first]
            states = torch.stack([begin, noise, field.samples(noise), epsilon], 1)
        rows = paths(states, torch.cat([level, way], 1))
        slope = slope_of(lambda rows=rows: objective.path_loss(field, rows)[0].mean(), field)
        with torch.no_grad():
            field.theta -= rate * slope
    return field


def test_plain_matching_can_lose_a_mode_and_with_diversity_both_stay():
    plain = taught(DistributionMatching(), 2.0, rate=1.0, updates=40, first=0)
    assert plain.share_of_the_upper_mode() in (0, 1)
    # The teacher's first step from z goes along z + 0: θ falls by 2 β of itself at each step.
    diverse = DistributionMatching(diversity=Diversity(weight=0.05, teacher_steps=2, num_steps=1))
    kept = taught(diverse, 2.0, rate=3.0, updates=20, first=1)
    assert_close(kept.theta.item(), 2.0 * (1 - 2 * 3.0 * 0.05) ** 20, rtol=1e-6, atol=0)
    assert kept.share_of_the_upper_mode() == 0.5
