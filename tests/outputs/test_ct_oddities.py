"""What is odd about a CT: each warning comes for its change of a head, and none for the head itself."""

import nibabel as nib
import numpy as np
import pytest

from scripts.outputs.ct_oddities import ct_measures, ct_warnings, metal_measures
from tests.phantoms import centred_affine, head_ct

SHAPE, SPACING = (52, 60, 46), np.full(3, 3.0)
PLACES = (np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2) * SPACING


def head() -> tuple[np.ndarray, np.ndarray]:
    """HU of a brain with ventricles in a skull, 5 HU of noise, and the mask of the brain."""
    radius = np.linalg.norm(PLACES / (66, 80, 58), axis=-1)
    hu = np.where(radius < 0.85, 29.0, 35.0)
    x, y, z = np.moveaxis(PLACES, -1, 0)
    hu[((np.abs(x) - 12) / 8) ** 2 + (y / 33) ** 2 + (z / 14) ** 2 < 1] = 8
    hu += np.random.default_rng(0).normal(0, 5, SHAPE)
    hu[radius > 1] = 900
    hu[radius > 1.1] = -1000
    return hu, radius < 1


def warned(hu: np.ndarray, mask: np.ndarray) -> list[str]:
    image = np.clip(hu / 80, 0.001, 1) * mask
    return ct_warnings(ct_measures(image, SPACING, hu))


def vessels() -> np.ndarray:
    """Tubes of 6 mm from front to back, among them a sinus between the hemispheres."""
    x, _, z = np.moveaxis(PLACES, -1, 0)
    return np.any([np.hypot(x - a, z - b) < 3.1 for a, b in ((0, 38), (28, -8), (-28, -8))], axis=0)


def inverted(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 62 - hu, hu)


def with_contrast_agent(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return hu + 90.0 * (vessels() & mask)


def windowed(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.clip(hu, 0, 80)


def in_grey_levels(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return 31 + (hu - 31) / 2


def test_a_usual_head_is_quiet():
    assert not warned(*head())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (inverted, "inverted grey levels"),
        (with_contrast_agent, "bright voxels inside the brain"),
        (windowed, "clipped scale"),
        (in_grey_levels, "air is at -484 HU instead of -1000"),
    ],
)
def test_a_change_is_told_and_it_alone(change, said):
    hu, mask = head()
    warnings = warned(change(hu, mask), mask)
    assert len(warnings) == 1
    assert said in warnings[0]


@pytest.mark.parametrize(("padding", "quiet"), [(-2000.0, True), (-1024.0, True), (-300.0, False)])
def test_padding_below_air_is_no_odd_scale(padding, quiet):
    hu, mask = head()
    hu[:, :, :8] = padding
    hu[hu < -500] = padding
    assert (not warned(hu, mask)) == quiet


def test_a_brain_too_small_to_have_an_inside_has_no_measures_of_places():
    hu, _ = head()
    measured = ct_measures(np.zeros(SHAPE), SPACING, hu)
    assert "deep_dark_hu" not in measured
    assert not ct_warnings(measured)


def test_a_large_asymmetry_is_told():
    assert "42 mL" in ct_warnings({"asymmetric_ml": 42.0})[0]
    assert not ct_warnings({"asymmetric_ml": 9.0})


def test_the_window_says_what_the_image_stands_for_and_a_known_one_is_no_news():
    """The same head through another window has the same HU; cut to a window that is told, it is not clipped."""
    inside = np.zeros(SHAPE, bool)
    inside[2:-2, 2:-2, 2:-2] = True
    hu = np.where(inside, 30 + 5 * np.random.default_rng(0).standard_normal(SHAPE), 0).clip(1, 79)
    narrow, wide = (ct_measures(inside * (hu - a) / (b - a), SPACING, hu, (a, b)) for a, b in ((0, 80), (-20, 180)))
    assert {k: round(v, 3) for k, v in wide.items()} == pytest.approx(
        {k: round(v, 3) for k, v in narrow.items()}, abs=0.6
    )
    clipped = {"clipped_share": 0.3}
    assert "clipped scale" in ct_warnings(clipped)[0]
    assert not ct_warnings(clipped, windowed=True)


GRID = (60, 68, 56)
PLACE = centred_affine(np.diag([3.0, 3.0, 3.0]), GRID)


def metal_of(hu: np.ndarray, mask: np.ndarray, axes: str = "RAS") -> dict[str, float]:
    turn = nib.orientations.ornt_transform(nib.io_orientation(PLACE), nib.orientations.axcodes2ornt(axes))
    affine = PLACE @ nib.orientations.inv_ornt_aff(turn, GRID)
    return metal_measures(nib.apply_orientation(hu, turn), nib.apply_orientation(mask, turn), affine)


def test_metal_and_its_streaks_are_told_in_every_orientation():
    """A ball of metal, dark streaks that the mask leaves out, and the half of a brain that it lost with them."""
    hu = head_ct(PLACE, GRID)
    points = nib.affines.apply_affine(PLACE, np.moveaxis(np.indices(GRID), 0, -1))
    mask = (hu < 100) & (hu > 0) & (np.linalg.norm(points / (69, 82, 65), axis=-1) < 1)
    assert metal_of(hu, mask) == {"metal_ml": 0, "streaks_ml": 0, "missing_ml": 0}
    ball = np.linalg.norm(points - (20, 20, 0), axis=-1) < 8
    streak = mask & (np.abs(points[..., 2]) < 5) & (np.abs(points[..., 1] - 20) < 8) & ~ball
    odd = np.where(ball, 30000, np.where(streak, -200, hu)).astype(np.float32)
    for axes in ("RAS", "LPI", "SAL"):
        measured = metal_of(odd, mask & ~streak & ~ball, axes)
        assert measured["metal_ml"] == pytest.approx(ball.sum() * 0.027)
        assert measured["streaks_ml"] == pytest.approx(streak.sum() * 0.027, rel=0.3)
    assert "metal at the brain: 2." in ct_warnings(measured)[0]
    lost = metal_of(hu, mask & (points[..., 1] > 0))
    assert lost["missing_ml"] > 200
    assert "The brain mask leaves out" in ct_warnings(lost)[0]


def test_a_tooth_is_far_from_the_brain():
    hu = head_ct(PLACE, GRID)
    hu[30, 60, 1] = 9000
    mask = np.zeros(GRID, bool)
    mask[20:40, 20:40, 30:45] = True
    assert metal_of(hu, mask)["metal_ml"] == 0
