"""Encoders of slices: sizes, unit vectors, and the same call."""

import pytest
import torch

from scripts.networks import PixelEncoder, SliceEncoder

SMALL = {"img_size": (16, 24), "hidden_size": 16, "mlp_dim": 32, "num_layers": 3, "num_heads": 2}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes():
    with torch.device("meta"):
        assert count(SliceEncoder()) == 564_608
        paper = SliceEncoder((224, 224), 16, 768, 3072, 12, 12)
        assert count(paper) == pytest.approx(85.4e6, rel=0.01)


def test_vectors_and_the_features_of_each_block_are_unit_vectors():
    torch.manual_seed(0)
    encoder, slices = SliceEncoder(**SMALL).eval(), torch.rand(5, 1, 16, 24)
    vectors, features = encoder(slices), encoder.features(slices)
    assert vectors.shape == (5, 16)
    assert [feature.shape for feature in features] == [(5, 16)] * 3
    for rows in (vectors, *features):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(encoder(slices[3:4]), vectors[3:4])
    assert (encoder(slices.flip(-1)) - vectors).abs().max() > 1e-3


def test_pixels_have_the_cosine_of_their_averages():
    a, b = torch.rand(2, 1, 1, 16, 24)
    whole = torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    torch.testing.assert_close((PixelEncoder(1)(a) * PixelEncoder(1)(b)).sum(), whole)
    assert PixelEncoder()(a).shape == (1, 4 * 6)
    torch.testing.assert_close(PixelEncoder()(3 * a), PixelEncoder()(a))
    assert not PixelEncoder()(torch.zeros(1, 1, 16, 24)).any()
