"""What tells a CT that is stripped already from a head that a brain window has robbed of its air and bone."""

import numpy as np
import pytest

from scripts.errors import CaseError
from scripts.transforms.ct_brain_mask import ct_brain_mask, is_stripped
from tests.phantoms import centred_affine, head_ct

SHAPE = (34, 40, 32)
AFFINE = centred_affine(np.diag([6.0, 6.0, 6.0]), SHAPE)


@pytest.mark.parametrize("window", [(0, 80), (-20, 100), (0, 40)])
def test_a_windowed_head_is_not_stripped_and_not_taken_for_a_brain(window):
    head = head_ct(AFFINE, SHAPE).clip(*window)
    assert not is_stripped(head)
    with pytest.raises(CaseError, match="shows no brain"):
        ct_brain_mask(head, AFFINE)


@pytest.mark.parametrize("window", [(-1024, 3000), (0, 80)])
def test_a_stripped_brain_is_stripped_in_any_window_that_shows_it(window):
    brain = np.where(ct_brain_mask(head_ct(AFFINE, SHAPE), AFFINE), head_ct(AFFINE, SHAPE), 0)
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    assert is_stripped((brain + noise * (brain != 0)).clip(*window))
