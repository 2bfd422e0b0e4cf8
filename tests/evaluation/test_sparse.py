"""Tables of sparse scans: what the rows stand for, and where errors are counted."""

import json

import numpy as np
import pytest
import torch

from scripts.data.sparsity import SparseScan
from scripts.evaluation.sparse import (
    CT_INTERPOLATED,
    DENSE,
    METHODS,
    MRI_INTERPOLATED,
    SPARSE,
    SparseInferer,
    missing_channel,
    sparse_figures,
    thinned,
)
from tests.evaluation.test_workflows import folder, run  # noqa: F401 - fixtures

SHAPE = (1, 1, 12, 12, 17)


def volume_of(along_z) -> torch.Tensor:
    return torch.as_tensor(along_z, dtype=torch.float32).expand(SHAPE).contiguous()


def translated(source, method, every=4):
    """What the network was given, and what came out of one that gives the square of its source."""
    seen = []

    def inferer(inputs, network, style_key=None):
        seen.append(inputs)
        return inputs[:, :1] ** 2

    return seen, SparseInferer(inferer, every, method)(source, None)


RAMP = volume_of(torch.linspace(0.1, 0.9, 17))


def test_all_slices_are_the_source_itself():
    seen, image = translated(RAMP, DENSE)
    torch.testing.assert_close(seen[0], RAMP)
    torch.testing.assert_close(image, RAMP**2)


def test_the_synthetic_image_is_interpolated_between_the_given_slices():
    _, image = translated(RAMP, MRI_INTERPOLATED)
    given = image[..., ::4]
    torch.testing.assert_close(given, (RAMP**2)[..., ::4])
    torch.testing.assert_close(image[..., 2::4], (given[..., 1:] + given[..., :-1]) / 2)


def test_the_ct_is_interpolated_before_the_network():
    seen, image = translated(RAMP, CT_INTERPOLATED)
    assert seen[0].shape == SHAPE  # no word of what is missing
    torch.testing.assert_close(seen[0], RAMP)  # a ramp is filled exactly
    torch.testing.assert_close(image, RAMP**2)


def test_the_sparse_bridge_is_told_what_is_missing():
    seen, _ = translated(RAMP, SPARSE)
    np.testing.assert_allclose(seen[0][0, 1, 0, 0] * 8, [0, 1, 2, 1] * 4 + [0])


def test_further_channels_follow_the_condition():
    inferer = SparseInferer(
        lambda inputs, network, style_key=None: inputs[:, 2:3], 4, SPARSE, lambda y, m, t: y + m + t
    )
    inferer.truth = RAMP / 2
    expected = thinned(RAMP, SparseScan(4.0)) + missing_channel(RAMP, SparseScan(4.0)) + RAMP / 2
    torch.testing.assert_close(inferer(RAMP, None), expected)


def test_other_methods_are_refused():
    with pytest.raises(ValueError, match="There is no method 'nearest'"):
        SparseInferer(lambda *_: None, 2, "nearest")


def test_errors_are_counted_where_they_are():
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.2, 0.8, (20, 20, 17)).astype(np.float32)
    mask = np.ones(reference.shape, bool)
    worse = reference.copy()
    missing = np.arange(17) % 4 != 0
    worse[..., missing] += 0.1
    figures = sparse_figures(worse, reference, mask, (2, 2, 2), every=4, target_contrast="PD")
    assert figures["psnr_missing"] == pytest.approx(20, abs=0.01)
    assert figures["psnr_given"] == np.inf
    assert 20.5 < figures["psnr_brain"] < 22
    assert figures["i_ssim_error_brain"] >= 0
    assert sparse_figures(reference, reference, mask, (2, 2, 2), 4, "PD")["i_ssim_error_brain"] == 0


def test_the_tables_of_a_set_of_pairs(run):  # noqa: F811
    out = run("evaluate_sparse.json", every=[2, 4], subjects="head0")
    text = (out / "sparse.md").read_text()
    assert "## Every second slice given" in text
    assert "## Every fourth slice given" in text
    content = json.loads((out / "sparse.json").read_text())
    assert list(content["every"]["4"]) == list(METHODS)
    for k in ("2", "4"):
        rows = {row: of["head0"]["figures"] for row, of in content["every"][k].items()}
        assert len({figures["psnr_brain"] for figures in rows.values()}) == len(METHODS)
    dense = [content["every"][k][DENSE]["head0"]["figures"] for k in ("2", "4")]
    assert dense[0]["psnr"] == dense[1]["psnr"]
