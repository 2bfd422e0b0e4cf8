"""Two keys of one volume: the voxels are the same memory, what is done to one does not show in the other."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd

from scripts.transforms.share import ShareItemsd


def item():
    values = torch.rand((1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    return {"image": MetaTensor(values, affine=torch.diag(torch.tensor([-1.0, 1, 1, 1])))}


def test_voxels_are_shared_and_what_describes_them_is_not():
    made = ShareItemsd("image", "source")(item())
    assert made["source"].data_ptr() == made["image"].data_ptr()
    made["source"].meta["note"] = 1
    made["source"].applied_operations.append("step")
    assert "note" not in made["image"].meta
    assert made["image"].applied_operations == []


def test_what_is_done_to_one_does_not_show_in_the_other():
    transforms = Compose([ShareItemsd("image", "source"), Orientationd("image", "RAS", labels=None)])
    made = transforms(item())
    given = item()["image"]
    np.testing.assert_array_equal(made["source"], given)
    np.testing.assert_array_equal(made["source"].affine, given.affine)
    assert made["source"].applied_operations == []
    back = Invertd("image", transforms, orig_keys="image")(made)
    np.testing.assert_array_equal(back["image"], back["source"])


def test_names_are_as_many_as_keys():
    with pytest.raises(ValueError, match="2 names for 1 keys"):
        ShareItemsd("image", ["a", "b"])
