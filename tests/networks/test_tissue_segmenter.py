"""The tissue segmenter: its size, its shapes, and what a slab's result depends on."""

import torch

from scripts.networks.tissue_segmenter import TissueSegmenter


def test_it_is_small_and_classifies_every_pixel_of_every_slice():
    torch.manual_seed(0)
    network = TissueSegmenter().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) < 500_000
    assert len(network.classes) == 4
    for height, width in ((104, 128), (46, 62)):  # any even size
        assert network(torch.rand(1, 3, height, width)).shape == (1, 4, 3, height, width)


def test_a_slab_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    network = TissueSegmenter(slab_size=5, features=(8, 8, 8, 8, 8, 8)).eval()
    slabs = torch.rand(3, 5, 48, 64)
    alone = torch.cat([network(slab[None]) for slab in slabs])
    torch.testing.assert_close(network(slabs), alone, atol=1e-5, rtol=1e-4)
