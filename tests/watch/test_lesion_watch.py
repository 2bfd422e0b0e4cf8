"""The lesion watch: quiet where both images show the same, loud where the T1 lacks what the CT shows."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.watch.lesion_watch import LesionWatch, LesionWatchd
from scripts.watch.midsagittal import find_mirror_plane

SHAPE, SPACING = (48, 57, 43), 3.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
AFFINE[:3, 3] = (-70, -85, -60)
PLACES = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING + AFFINE[:3, 3]


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    return np.linalg.norm(PLACES - centre, axis=-1) < radius


def head(noise: float = 2.0, right_ventricle: float = 9.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, T1 and mask of an ellipsoid of grey matter around white matter, with two ventricles."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(PLACES / (66, 80, 58), axis=-1)
    hu, t1 = np.where(radius < 0.85, 27.0, 34.0), np.where(radius < 0.85, 0.8, 0.6)
    ventricles = ball((-14, 0, 5), 9.0) | ball((14, 0, 5), right_ventricle)
    hu[ventricles], t1[ventricles] = 7.0, 0.15
    return hu + rng.normal(0, noise, SHAPE), t1, radius < 1


def watched(hu: np.ndarray, t1: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, list]:
    smooth = ndimage.gaussian_filter(t1, 0.5)
    return LesionWatch()(np.clip(hu / 80, 0.001, 1) * mask, smooth * mask, AFFINE)


@pytest.mark.parametrize(("noise", "right_ventricle"), [(2.0, 9.0), (8.0, 9.0), (2.0, 15.0)])
def test_a_healthy_head_is_quiet_with_noise_and_with_asymmetric_ventricles(noise, right_ventricle):
    marks, findings = watched(*head(noise, right_ventricle))
    assert not findings
    assert not marks.any()


@pytest.mark.parametrize(
    ("change", "radius", "kind", "label"),
    [(-12.0, 9.0, "dark", 1), (-8.0, 14.0, "dark", 1), (-6.0, 19.0, "dark", 1), (25.0, 9.0, "bright", 2)],
)
def test_what_only_the_ct_shows_is_marked_and_measured(change, radius, kind, label):
    hu, t1, mask = head()
    lesion = ball((38, -20, 10), radius)
    marks, findings = watched(hu + change * lesion, t1, mask)
    assert [finding.kind for finding in findings] == [kind]
    found = findings[0]
    assert np.linalg.norm(np.subtract(found.place_mm, (38, -20, 10))) < 6
    assert found.ml == pytest.approx(lesion.sum() * SPACING**3 / 1000, rel=0.4)
    assert found.hu * change > 0
    assert found.synthetic == pytest.approx(1, abs=0.1)
    assert (marks[lesion] == label).mean() > 0.8
    assert set(np.unique(marks)) == {0, label}


@pytest.mark.parametrize(("change", "t1_there"), [(-12.0, 0.5), (25.0, 0.5), (25.0, 1.0)])
def test_what_the_t1_shows_too_is_not(change, t1_there):
    hu, t1, mask = head()
    lesion = ball((38, -20, 10), 14.0)
    assert watched(hu + change * lesion, t1, mask)[1]
    assert not watched(hu + change * lesion, np.where(lesion, t1_there, t1), mask)[1]


def test_lesions_on_both_sides_have_no_mirror_and_are_found_by_their_tissue():
    hu, t1, mask = head()
    both = ball((34, -25, 10), 13.0) | ball((-34, -25, 10), 13.0)
    findings = watched(hu - 18 * both, t1, mask)[1]
    assert len(findings) == 2
    assert {finding.compared_with for finding in findings} == {"tissue"}


def test_the_mirror_plane_of_a_tilted_head():
    tilt = np.radians(10)
    x, y = PLACES[..., 0] - 6, PLACES[..., 1]
    turned = np.stack([np.cos(tilt) * x + np.sin(tilt) * y, -np.sin(tilt) * x + np.cos(tilt) * y, PLACES[..., 2]], -1)
    # wider at the back, so that only one plane will do
    edges = [50 - 0.15 * turned[..., 1], np.full(SHAPE, 75.0), np.full(SHAPE, 50.0)]
    radius = np.linalg.norm(turned / np.stack(edges, -1), axis=-1)
    volume = (radius < 1).astype(np.float32)
    plane = find_mirror_plane(volume, np.full(3, SPACING))
    assert np.degrees(np.arctan2(plane.normal[1], plane.normal[0])) == pytest.approx(10, abs=1.5)
    distance = plane.distance(SHAPE)
    assert abs(distance[volume > 0].mean()) < 1
    twice = plane.reflected(plane.reflected(volume))
    assert abs(twice - volume).mean() < 0.02


def test_the_transform_adds_marks_only_where_something_is_found():
    hu, t1, mask = head()
    lesion = ball((38, -20, 10), 14.0)
    for change in (0.0, -12.0):
        source = MetaTensor(np.clip((hu + change * lesion) / 80, 0.001, 1)[None] * mask, affine=AFFINE).float()
        data = {"image": source, "pred": torch.as_tensor(t1 * mask).float()[None]}
        out = LesionWatchd()(data)
        assert ("watch" in out) == bool(change) == bool(out["lesion_watch"])
        assert out["asymmetric_ml"] == pytest.approx(11 if change else 0, abs=4.5)
    assert out["watch"].dtype == torch.uint8
    assert out["watch"].shape == source.shape
    assert LesionWatchd(enabled=False)(data).keys() == data.keys()
