"""Batches of the tissue segmenter."""

import torch
from scipy import ndimage

from scripts.engines.tissue_batches import TissuePrepareBatch, blurred


def test_each_item_is_blurred_by_its_own_gaussian():
    images = torch.rand(3, 2, 20, 24, generator=torch.Generator().manual_seed(0))
    out = blurred(images, torch.tensor([0.0, 0.7, 1.1]))
    torch.testing.assert_close(out[0], images[0])
    for item, sigma in ((1, 0.7), (2, 1.1)):
        for k in range(2):
            slow = ndimage.gaussian_filter(images[item, k].numpy(), sigma, mode="constant", radius=4)
            torch.testing.assert_close(out[item, k], torch.from_numpy(slow), atol=1e-5, rtol=1e-4)


def test_labels_are_background_and_the_three_maps_slice_by_slice():
    maps = torch.rand(2, 3, 3, 8, 8) / 2
    batch = {"source": torch.rand(2, 3, 8, 8), "extras": maps.flatten(1, 2)}
    images, labels = TissuePrepareBatch(blur_share=0)(batch)
    torch.testing.assert_close(images, batch["source"])
    assert labels.shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(2, 3, 8, 8))
    shares = maps / maps.sum(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(labels[:, 1:], shares)
