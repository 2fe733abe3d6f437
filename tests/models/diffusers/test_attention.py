"""Where a network looks: noted as the module itself computes it, for each sample and without a trace."""

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from models.diffusers.builders import PLAIN_LTX2, TINY
from models.diffusers.stock import PROMPTS, model_of
from thalweg.core.errors import UserError
from thalweg.flow import FlowSDE, Heun
from thalweg.models.contract import HasAttention
from thalweg.models.diffusers.attention import noted
from thalweg.models.diffusers.pipelines import prepare
from thalweg.models.diffusers.policy import DiffusersPolicy
from thalweg.rollout import Attention, Deterministic, Rollout, Root, Tree, grow
from thalweg.rollout.shares import joined, split

LOOK = ("video_to_audio_attn", None)
SIGMA = torch.tensor([0.8, 0.4])


@pytest.fixture(scope="module")
def policy():
    """A tiny LTX-2 under guidance."""
    return DiffusersPolicy(prepare(TINY["ltx2"].build()), model_of("ltx2"))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def module():
    """Two heads of four channels over queries of 8 channels and keys of 6, with norms."""
    attention = LTX2Attention(query_dim=8, heads=2, kv_heads=2, dim_head=4, cross_attention_dim=6).eval()
    for seed, parameter in enumerate(attention.parameters()):
        parameter.data = random(*parameter.shape, seed=seed)
    return attention


def by_hand(attention, queries, keys, angles_q, angles_k):
    """a of one row, a query, a head and a key at a time."""

    def projected(linear, norm, tokens, angles):
        y = tokens @ linear.weight.T + linear.bias
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        turned = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angles)
        return torch.view_as_real(turned).flatten(-2).unflatten(-1, (2, 4))  # (tokens, heads, channels)

    q = projected(attention.to_q, attention.norm_q, queries, angles_q)
    k = projected(attention.to_k, attention.norm_k, keys, angles_k)
    paid = torch.zeros(len(keys))
    for query in q:
        for head in range(2):
            odds = torch.stack([(query[head] * key[head]).sum() / 2 for key in k]).exp()  # sqrt(4) = 2
            paid += odds / odds.sum() / 2
    return paid


def test_what_is_noted_is_the_attention_that_the_module_computes(module):
    queries, keys = random(2, 3, 8), random(2, 5, 6, seed=1)
    angles_q, angles_k = random(2, 3, 4, seed=2), random(2, 5, 4, seed=3)

    def turn(angles):
        twice = angles.repeat_interleave(2, -1)
        return twice.cos(), twice.sin()

    def attend():
        return module(queries, keys, query_rotary_emb=turn(angles_q), key_rotary_emb=turn(angles_k))

    with torch.no_grad():
        before = attend()
        with noted([module], [module], rows=2) as paid:
            looked_at = attend()
            attend()  # a later pass counts as none
        assert torch.equal(looked_at, before)
        assert len(paid) == 1
        for row in range(2):
            expected = by_hand(module, queries[row], keys[row], angles_q[row], angles_k[row])
            assert_close(paid[0][row], expected, rtol=1e-4, atol=1e-5)
        attend()
    assert len(paid) == 1  # nobody looks any more
    assert not module._forward_pre_hooks and not module._forward_hooks


class Plain(nn.Module):
    def forward(self, query, key, value, mask):
        return scaled_dot_product_attention(query, key, value, mask)


def test_a_masked_key_is_paid_nothing_however_it_is_masked():
    inner, mask = Plain(), torch.arange(5)[None] == 2
    q, k, v = (random(1, 2, n, 4, seed=n) for n in (3, 5, 5))
    for given in (~mask, torch.where(mask, -torch.inf, 0.0)):
        with noted([inner], [inner], rows=1) as paid:
            inner(q, k, v, given)
        assert paid[0][0, 2] == 0
        assert_close(paid[0].sum(), torch.tensor(3.0))  # each of three queries pays 1
        # An attention that attends all values 1 for key p and 0 elsewhere gives what p is paid.
        of_key = torch.eye(5)[None, None].expand(1, 2, -1, -1)
        assert_close(paid[0][0], inner(q, k, of_key, given).mean(1).sum(1)[0])


class Two(nn.Module):
    """A network whose hook lets a pass of another process in, before its own."""

    def __init__(self, attention):
        super().__init__()
        self.attention, self.others = attention, [random(1, 3, 8, seed=9)]
        self.register_forward_pre_hook(self.let_in)

    def let_in(self, *_):
        while self.others:
            self(self.others.pop())

    def forward(self, queries):
        return self.attention(queries, random(1, 5, 6, seed=1))


def test_passes_of_other_processes_are_not_noted(module):
    with torch.no_grad():
        alone, visited = Two(module), Two(module)
        alone.others.clear()
        found = []
        for network in (alone, visited):
            with noted([network], [network.attention], rows=1) as paid:
                network(random(1, 3, 8))
            found.append(paid)
    assert [len(paid) for paid in found] == [1, 1]
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("name", ["video_to_audio_attn", "audio_to_video_attn"])
def test_each_token_of_the_part_is_paid_and_the_velocity_stays_to_the_bit(name, tiny_policy_of):
    call = {**PLAIN_LTX2, "audio_guidance_scale": 1.0}
    policy: DiffusersPolicy = tiny_policy_of("ltx2", guidance_scale=1.0, call=call)
    assert all(isinstance(one, HasAttention) for one in (policy,)) and policy.passes_per_velocity == 1
    x, condition = random(2, *policy.latent_shape), policy.encode(PROMPTS)
    with torch.no_grad():
        expected = policy.velocity(x, SIGMA, condition)
    before = policy.passes.evaluations
    velocity, paid = policy.attended(x, SIGMA, condition, name, None)
    assert torch.equal(velocity, expected) and policy.passes.evaluations == before + 2
    seen, other = paid.split(policy.parts, 1)
    if name == "audio_to_video_attn":
        seen, other = other, seen
    assert other.isnan().all()
    tokens = seen.view(2, -1, 4)  # four channels of a token, in both parts
    assert torch.equal(tokens, tokens[..., :1].expand_as(tokens))
    payers = other.shape[1] // 4
    assert_close(tokens[..., 0].sum(1), torch.full((2,), float(payers)), rtol=1e-4, atol=1e-4)
    assert tokens.std() > 0 and not torch.allclose(tokens[0], tokens[1])


@pytest.mark.parametrize("more", [{}, {"modality_scale": 2.0}, {"stg_scale": 1.0, "audio_stg_scale": 1.0}])
def test_of_guided_passes_the_conditional_one_is_noted(more, tiny_policy_of):
    blocks = {"spatio_temporal_guidance_blocks": [1]} if "stg_scale" in more else {}
    guided = tiny_policy_of("ltx2", call={**PLAIN_LTX2, **more, **blocks})
    plain = tiny_policy_of("ltx2", guidance_scale=1.0, call={**PLAIN_LTX2, "audio_guidance_scale": 1.0})
    assert guided.passes_per_velocity == (3 if more else 2)
    x = random(2, *guided.latent_shape)
    _, paid = guided.attended(x, SIGMA, guided.encode(PROMPTS), *LOOK)
    _, expected = plain.attended(x, SIGMA, plain.encode(PROMPTS), *LOOK)
    assert_close(paid, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_blocks_are_averaged(policy):
    x, condition = random(2, *policy.latent_shape), policy.encode(PROMPTS)
    first, second, both = (
        policy.attended(x, SIGMA, condition, LOOK[0], blocks)[1] for blocks in ((0, 0), (1, 1), (0, 1))
    )
    assert not torch.allclose(first, second, equal_nan=True)
    assert_close(both, (first + second) / 2, equal_nan=True)


ROOTS = [Root(slot, group, slot * 2 + group, slot) for slot in (0, 1) for group in range(2)]


def paid_in(forest):
    assert forest.attention is not None
    return forest.attention


def grown(policy, roots=ROOTS, prompts=PROMPTS, **changes):
    settings = {"plan": Deterministic(), "group_size": 2, "steps": 4, "attention": Attention(modules=LOOK[0])}
    rollout = Rollout(**settings | changes)
    return grow(policy, prompts, roots, rollout, seed=0, iteration=7, keep_states=True)


def test_a_leaf_carries_the_mean_over_the_noted_steps_of_its_own_way(policy):
    forest, plain = grown(policy), grown(policy, attention=None)
    assert torch.equal(forest.latents, plain.latents) and plain.attention is None
    assert forest.iteration == 7 and forest.attention is not None
    condition = policy.encode(PROMPTS).index(forest.leaf_condition)
    at_steps = [  # int(0.5 * 4) = 2 to int(0.9 * 4) = 3
        policy.attended(forest.paths[:, step], forest.sigmas[:, step], condition, *LOOK)[1] for step in (2, 3)
    ]
    expected = torch.stack(at_steps).mean(0)
    assert_close(paid_in(forest), expected, equal_nan=True)
    assert not torch.allclose(at_steps[0], at_steps[1], equal_nan=True)
    every = grown(policy, attention=Attention(modules=LOOK[0], start=0, end=1))
    assert not torch.allclose(paid_in(every), expected, equal_nan=True)


def test_rows_keep_their_own_in_any_micro_batch_and_in_shares(policy):
    forest = grown(policy)
    assert_close(paid_in(grown(policy, micro_batch=1)), paid_in(forest), equal_nan=True)
    assert_close(paid_in(grown(policy, micro_batch=3)), paid_in(forest), equal_nan=True)
    shares = split(ROOTS, 3)
    parts = [grown(policy, share.roots, [PROMPTS[row] for row in share.rows]) for share in shares]
    whole = joined(parts, shares, PROMPTS, forest.condition)
    assert_close(paid_in(whole), paid_in(forest), equal_nan=True)
    assert whole.iteration == 7
    rows = paid_in(forest).nan_to_num()
    assert (rows[:, None] - rows[None]).abs().amax(2).fill_diagonal_(1).min() > 1e-6  # no two are alike


def test_every_leaf_of_a_tree_has_that_of_its_own_branch(policy):
    forked = grown(
        policy,
        [Root(0, 0, 0, 0), Root(1, 0, 1, 1)],
        plan=Tree(branching=2, forks=(1,), start=0, size=2),
        kernel=FlowSDE(),
        seed_groups=1,
        attention=Attention(modules=LOOK[0], start=0, end=0.5),
    )
    condition = policy.encode(PROMPTS).index(forked.leaf_condition)
    at_steps = [
        policy.attended(forked.paths[:, step], forked.sigmas[:, step], condition, *LOOK)[1]
        for step in range(3)
    ]
    assert len(forked.leaves) == 4
    assert_close(paid_in(forked), torch.stack(at_steps).mean(0), equal_nan=True)
    for step, is_shared in enumerate((True, True, False)):
        first, second = at_steps[step][:2].nan_to_num()
        assert torch.allclose(first, second) == is_shared


def test_the_calls_of_heun_are_counted_as_steps(policy):
    forest = grown(policy, [ROOTS[0]], solver=Heun(), steps=2, attention=Attention(modules=LOOK[0], end=0.5))
    calls = forest.sigmas.shape[1] - 1
    step = calls // 2
    condition = policy.encode(PROMPTS[:1])
    expected = policy.attended(forest.paths[:, step], forest.sigmas[:, step], condition, *LOOK)[1]
    assert_close(paid_in(forest), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("family", "modules", "blocks", "message"),
    [
        ("ltx2", "video_to_audio_atn", None, "of LTX2Pipeline; did you mean 'video_to_audio_attn'?"),
        ("ltx2", "video_to_audio_attn", (1, 5), r"rollout\.attention\.blocks=\[1, 5\]: .* blocks 0 \.\. 1"),
        ("sd3", "attn", None, "is not known of StableDiffusion3Pipeline; leave rollout.attention out"),
    ],
)
def test_attention_that_nobody_knows_is_refused(family, modules, blocks, message, tiny_policy_of):
    with pytest.raises(UserError, match=message):
        tiny_policy_of(family).require_attention(modules, blocks)


def test_attention_out_of_sight_is_refused(tiny_policy_of, monkeypatch):
    policy = tiny_policy_of("ltx2")

    def of_another_backend(query, key, value, **options):
        return (
            torch.softmax(query.transpose(1, 2) @ key.permute(0, 2, 3, 1), -1)
            .matmul(value.transpose(1, 2))
            .transpose(1, 2)
        )

    monkeypatch.setattr(
        "diffusers.models.transformers.transformer_ltx2.dispatch_attention_fn", of_another_backend
    )
    x = random(1, *policy.latent_shape)
    with pytest.raises(UserError, match="they do not use torch's own attention"):
        policy.attended(x, SIGMA[:1], policy.encode(PROMPTS[:1]), *LOOK)
