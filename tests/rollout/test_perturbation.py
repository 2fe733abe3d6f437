import pytest
import torch
from torch.testing import assert_close

from thalweg.core.errors import UserError
from thalweg.core.values import Prompt
from thalweg.rollout import Deterministic, Perturbation, Rollout, Root, grow

GENERATOR = torch.Generator().manual_seed(0)
EMBEDDING = torch.randn(2, 6, 16, generator=GENERATOR)
CONTENT = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
NOISE = torch.randn(2, 3, 6, 16, generator=GENERATOR)


def cosines(shifts):
    """(of each variant to the prompt's own, between the variants), over the mean of content tokens."""
    weight = (CONTENT / CONTENT.sum(1, keepdim=True))[:, None, :, None]
    pooled = ((EMBEDDING[:, None] + shifts) * weight).sum(2)
    own = (EMBEDDING[:, None] * weight).sum(2)
    near = torch.cosine_similarity(pooled, own, dim=-1)
    pairs = torch.cosine_similarity(pooled[:, :, None], pooled[:, None], dim=-1)
    return near, pairs[:, [0, 0, 1], [1, 2, 2]]


@pytest.mark.parametrize("similarity", [0.9, 0.6])
def test_variants_end_as_near_to_the_prompt_as_they_are_told(similarity):
    rule = Perturbation(
        similarity=similarity, margin=0.05, diversity_weight=0.1, learning_steps=150, learning_rate=0.02
    )
    near, _ = cosines(rule.learn(EMBEDDING, CONTENT, NOISE))
    assert ((near - similarity).abs() < 0.06).all()


def test_the_defaults_bring_every_variant_to_where_it_shall_be():
    near, _ = cosines(Perturbation().learn(EMBEDDING, CONTENT, NOISE))
    assert ((near - 0.9).abs() < 0.025).all()  # the margin of .02, and the last step


def test_a_weight_on_diversity_sets_variants_apart():
    numbers = {"similarity": 0.6, "learning_steps": 100, "margin": 0.05}
    apart, together = (
        cosines(Perturbation(diversity_weight=w, **numbers).learn(EMBEDDING, CONTENT, NOISE))[1]
        for w in (3.0, 0.0)
    )
    assert (apart < together - 0.1).all()


def test_tokens_without_meaning_stay():
    shifts = Perturbation().learn(EMBEDDING, CONTENT, NOISE)
    empty = CONTENT[:, None, :, None].expand_as(shifts) == 0
    assert (shifts[empty] == 0).all() and (shifts[~empty] != 0).all()


@pytest.mark.parametrize(
    ("reach", "sigma", "share"),
    [(0.4, 1.0, 1.0), (0.4, 0.8, 0.5), (0.4, 0.6, 0.0), (0.4, 0.1, 0.0), (1.0, 0.25, 0.25)],
)
def test_variants_fade_out_towards_data(reach, sigma, share):
    assert Perturbation(reach=reach).share(sigma) == pytest.approx(share, abs=1e-9)


def test_what_the_variants_start_from_is_an_address_of_the_prompt(tiny_policy, prompts):
    rollout = Rollout(
        plan=Deterministic(), group_size=3, steps=3, perturbation=Perturbation(variants=3, reach=0.5)
    )
    policy = tiny_policy()

    def drawn(slots, iteration=0):
        roots = [Root(s, g, s * 3 + g, at) for at, s in enumerate(slots) for g in range(3)]
        asked = [prompts[s] for s in slots]
        return grow(policy, asked, roots, rollout, seed=0, iteration=iteration).latents

    both, second = drawn([0, 1]), drawn([1])
    assert_close(both[3:], second, atol=1e-5, rtol=0)
    assert not torch.isclose(drawn([1], iteration=1), second).all(1).any()


def test_a_model_whose_embeddings_cannot_be_moved_is_refused(linear_policy):
    rollout = Rollout(plan=Deterministic(), group_size=1, steps=3, perturbation=Perturbation())
    with pytest.raises(UserError, match="prompt embeddings cannot be moved; leave it out"):
        grow(linear_policy(), [Prompt("")], [Root(0, 0, 0, 0)], rollout, seed=0, iteration=0)
