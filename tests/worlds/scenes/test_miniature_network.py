import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from thalweg.models.miniature.network import Attention, Miniature, MiniatureConfig

SIZES = {"num_tokens": 9, "text_length": 4, "stem_channels": 8, "model_width": 16, "depth": 2, "num_heads": 2}


def network_of(height: int = 16, width: int = 16) -> Miniature:
    torch.manual_seed(0)
    network = Miniature(MiniatureConfig(height=height, width=width, **SIZES))
    for parameter in network.parameters():  # modulation starts at zero; a trained one is not
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs_of(network: Miniature, rows: int = 3):
    config = network.config
    x = torch.randn(rows, config.channels, config.height, config.width)
    return x, torch.rand(rows) * 0.9 + 0.1, torch.randint(1, config.num_tokens, (rows, config.text_length))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_the_velocity_has_the_shape_of_the_image(height, width):
    network = network_of(height, width)
    assert network(*inputs_of(network)).shape == (3, 3, height, width)


def test_the_velocity_leads_from_x_to_the_predicted_image():
    # x_σ = (1-σ) x0 + σ ε and v = ε - x0 give x_σ - σ v = x0.
    network = network_of()
    x, sigma, tokens = inputs_of(network)
    velocity = network(x, sigma, tokens)
    assert_close(x - sigma.view(-1, 1, 1, 1) * velocity, network.predict_x0(x, sigma, tokens))


def test_the_velocity_stays_finite_at_sigma_zero():
    network = network_of()
    x, _, tokens = inputs_of(network)
    velocity = network(x, torch.zeros(3), tokens)
    assert_close(velocity, (x - network.predict_x0(x, torch.zeros(3), tokens)) / 0.05)


def test_samples_do_not_see_each_other():
    network = network_of()
    x, sigma, tokens = inputs_of(network)
    order = torch.tensor([2, 0, 1])
    assert_close(network(x[order], sigma[order], tokens[order]), network(x, sigma, tokens)[order])


def test_the_text_the_order_of_its_words_and_sigma_matter():
    network = network_of()
    x, sigma, tokens = inputs_of(network)
    tokens = torch.tensor([[1, 2, 3, 0]]).expand(3, 4)
    velocity = network(x, sigma, tokens)
    for other in ([[0, 0, 0, 0]], [[3, 2, 1, 0]], [[1, 2, 4, 0]]):
        assert (network(x, sigma, torch.tensor(other).expand(3, 4)) - velocity).abs().amax(
            (1, 2, 3)
        ).min() > 1e-3
    assert (
        network.predict_x0(x, sigma / 2, tokens) - network.predict_x0(x, sigma, tokens)
    ).abs().max() > 1e-3


def test_attention_is_torch_s_own():
    torch.manual_seed(0)
    attention, h = Attention(width=8, num_heads=2), torch.randn(3, 5, 8)
    q, k, v = (
        to(h).view(3, 5, 2, 4).transpose(1, 2) for to in (attention.to_q, attention.to_k, attention.to_v)
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8)
    assert_close(attention(h), attention.to_out(mixed))


def test_every_parameter_has_a_gradient():
    network = network_of()
    network(*inputs_of(network)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_bfloat16_weights_give_the_same_velocity_to_their_precision():
    network = network_of()
    x, sigma, tokens = inputs_of(network)
    exact = network.predict_x0(x, sigma, tokens)
    rounded = network.bfloat16().predict_x0(x.bfloat16(), sigma, tokens).float()
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()
