import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thalweg.core.errors import UserError
from thalweg.core.noise import Address
from thalweg.evaluation import (
    attribute_entropy,
    cosine_distance,
    diversity_metrics,
    euclidean_distance,
    vendi_score,
)


def test_orthonormal_images_are_as_many_as_they_are():
    assert vendi_score(torch.eye(5)) == pytest.approx(5)
    assert cosine_distance(torch.eye(5)) == pytest.approx(1)
    assert euclidean_distance(torch.eye(5)) == pytest.approx(math.sqrt(2))


def test_copies_count_as_one_image_whatever_their_length():
    copies = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]])
    assert vendi_score(copies) == pytest.approx(1)
    assert cosine_distance(copies) == pytest.approx(0, abs=1e-6)


def test_two_equal_clusters_count_as_two():
    assert vendi_score(torch.eye(2).repeat(3, 1)) == pytest.approx(2)


def test_the_vendi_score_of_two_images_follows_from_their_angle():
    # K/2 = [[1, c], [c, 1]]/2 has eigenvalues (1 ± c)/2; at 60 degrees c = 1/2.
    pair = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    assert vendi_score(pair) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_the_distance_is_the_mean_over_pairs():
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert euclidean_distance(corners) == pytest.approx((3 + 4 + 5) / 3)


@pytest.mark.parametrize(
    ("labels", "bits"),
    [("aaaa", 0.0), ("aabb", 1.0), ("abcd", 2.0), ("aaab", 0.8112781)],  # 3/4 log2 4/3 + 1/4 log2 4
)
def test_attribute_entropy_is_in_bits(labels, bits):
    assert attribute_entropy(labels) == pytest.approx(bits)


@given(seed=st.integers(0, 2**31))
def test_the_order_of_a_group_does_not_matter(seed):
    features = Address(seed, "selection").normal((6, 4))
    shuffled = features[Address(seed, "order").permutation(6)]
    for measure in (cosine_distance, euclidean_distance, vendi_score):
        assert measure(shuffled) == pytest.approx(measure(features))


def test_metrics_are_means_over_the_groups_and_leave_single_images_out():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    group = torch.tensor([0, 1, 0, 1, 9])
    metrics = diversity_metrics(features, group, ["red", "red", "blue", "red", "red"])
    assert metrics == {  # group 0: orthogonal, two colours; group 1: copies, one colour
        "diversity": pytest.approx(0.5),
        "diversity/distance": pytest.approx(0.5),
        "diversity/vendi": pytest.approx(1.5),
        "diversity/attribute_entropy": pytest.approx(0.5),
    }


def test_images_without_the_attribute_do_not_enter_its_entropy():
    metrics = diversity_metrics(torch.eye(4), torch.zeros(4, dtype=torch.int64), ["red", None, "blue", None])
    assert metrics["diversity/attribute_entropy"] == pytest.approx(1.0)
    assert "diversity/attribute_entropy" not in diversity_metrics(
        torch.eye(2), torch.zeros(2, dtype=torch.int64), [None, "red"]
    )


def test_one_image_a_prompt_has_no_diversity_and_says_so():
    with pytest.raises(UserError, match="at least two images"):
        diversity_metrics(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="needs a pair"):
        cosine_distance(torch.eye(1))
