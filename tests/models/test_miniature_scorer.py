import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from thalweg.models.miniature.network import MiniatureConfig
from thalweg.models.miniature.scorer import Scorer, ScorerConfig, load_scorer

FRONT = MiniatureConfig(
    height=8,
    width=16,
    num_tokens=9,
    text_length=4,
    stem_channels=8,
    model_width=16,
    text_depth=1,
    depth=2,
    num_heads=2,
)
CONFIG = ScorerConfig(front=FRONT, num_objects=6)


def scorer_of() -> Scorer:
    torch.manual_seed(0)
    return Scorer(CONFIG).eval()


def inputs(rows: int = 3):
    return torch.randn(rows, 3, 8, 16), torch.rand(rows), torch.randint(1, 9, (rows, 4))


def test_samples_do_not_see_each_other():
    scorer, order = scorer_of(), torch.tensor([2, 0, 1])
    x, sigma, tokens = inputs()
    logit, counts = scorer(x, sigma, tokens)
    assert counts.shape == (3, 6)
    assert_close(scorer(x[order], sigma[order], tokens[order]), (logit[order], counts[order]))


def test_latents_noise_level_and_words_matter_to_the_verdict():
    scorer = scorer_of()
    x, sigma, tokens = inputs()
    logit = scorer(x, sigma, tokens)[0]
    for other in ((x + 1, sigma, tokens), (x, 1 - sigma, tokens), (x, sigma, tokens.flip(1))):
        assert (scorer(*other)[0] - logit).abs().min() > 1e-4


def test_every_parameter_has_a_gradient():
    scorer = scorer_of()
    logit, counts = scorer(*inputs())
    (logit.sum() + counts.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in scorer.parameters())


def test_a_stored_scorer_is_read_back_frozen_in_float32(tmp_path):
    scorer = scorer_of()
    halves = {name: t.half() for name, t in scorer.state_dict().items()}
    save_file(halves, tmp_path / "scorer.safetensors", metadata={"config": CONFIG.model_dump_json()})
    again = load_scorer(tmp_path / "scorer.safetensors")
    assert not any(p.requires_grad for p in again.parameters())
    scorer.load_state_dict({name: t.float() for name, t in halves.items()})
    arguments = inputs()
    assert torch.equal(again(*arguments)[0], scorer(*arguments)[0])
