"""The quality picture shows what it says, the right way round; the page names who was left out and why."""

from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.prepare.quality import EDGE, OUTLINE, ZOOM, quality_page, quality_picture

SHAPE = (60, 70, 50)


@pytest.fixture(scope="module")
def volumes():
    """A ball; the target has a bright block on the patient's left (low x), the source one of 30 mm behind (low y)."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij"))
    mask = (grid**2).sum(axis=0) < 20**2
    source, target = 0.4 * mask, 0.4 * mask
    target[15:24, 30:40, 20:30] = 0.9
    source[26:34, 16:24, 20:30] = 0.9
    return source, target, mask


@pytest.fixture(scope="module")
def picture(volumes):
    """(rows, columns, 3) in [0, 1]."""
    return np.asarray(quality_picture(*volumes, ("FLAIR", "T1"), tile=10)) / 255


def column(picture, number):
    width = picture.shape[1] // 3
    return picture[:, number * width : (number + 1) * width]


def axial(view):
    return view[24 : 24 + ZOOM * SHAPE[1]]


def is_colour(view, colour):
    return np.abs(view - np.array(colour)).max(axis=-1) < 0.02


def test_planes_are_true_to_scale(picture):
    # the sagittal plane is the widest
    assert picture.shape == (24 + ZOOM * (SHAPE[1] + 2 * SHAPE[2]), 3 * ZOOM * SHAPE[1], 3)


def test_left_is_on_the_right(picture):
    view = axial(column(picture, 2)).mean(axis=-1)
    bright = np.argwhere(view > 0.95).mean(axis=0)
    assert bright[1] > view.shape[1] / 2 + 10


def test_edges_are_those_of_the_target_over_the_source(picture):
    view = axial(column(picture, 1))
    orange = np.argwhere(is_colour(view, EDGE))
    middle = view.shape[1] / 2
    # the block of the target has its edge on the right of the picture, the one of the source has none
    block = orange[np.abs(orange[:, 0] - view.shape[0] / 2) < ZOOM * 3]
    assert np.any((block[:, 1] > middle + ZOOM * 5) & (block[:, 1] < middle + ZOOM * 8))
    source_block = view[ZOOM * 48 : ZOOM * 52, int(middle) - 4 : int(middle) + 4]
    assert source_block.min() > 0.95
    assert not is_colour(axial(column(picture, 0)), EDGE).any()


def test_outline_is_the_masks(picture, volumes):
    view = axial(column(picture, 2))
    marked = np.argwhere(is_colour(view, OUTLINE))
    centre = np.array(view.shape[:2]) / 2 - 0.5
    radius = np.linalg.norm(marked - centre, axis=1) / ZOOM
    assert len(marked) > 100
    assert np.all(np.abs(radius - np.sqrt(20**2 - 0.5**2)) < 1.5)


def test_checkerboard_shows_both(picture, volumes):
    view = axial(column(picture, 0)).mean(axis=-1)
    source, target = (axial(column(picture, n)).mean(axis=-1) for n in (1, 2))
    inside = np.abs(np.argwhere(view > 0) - np.array(view.shape) / 2).max(axis=1)
    assert len(inside)
    # parts of both bright blocks, and not all of either
    whole = [np.sum(v > 0.95) for v in (source, target)]
    assert 0 < np.sum(view > 0.95) < sum(whole)


def record(after, **others):
    return {
        "person": "anna & co",
        "section": "test",
        "registration": {"mutual_information_before": 0.2, "mutual_information_after": after, "displacement_mm": 12.3},
        "brain": {"from": "labels", "millilitres": 1234, "seen": 0.9},
        "source": {"contrast": "CT", "spacing_mm": [0.5, 0.5, 5.0]},
        "target": {"contrast": "T1", "spacing_mm": [1, 1, 1]},
        **others,
    }


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets = []

    def handle_starttag(self, tag, attributes):
        self.targets += [value for name, value in attributes if name in ("src", "href")]


def test_page_has_the_doubtful_first_and_failures_above_all():
    records = {"good": record(0.9), "poor": record(0.4), "as_it_was": record(0, registration=None)}
    pictures = {name: f"quality/{name}.png" for name in records}
    page = quality_page(records, pictures, [{"subject": "torn", "reason": "torn.nii.gz is <damaged>."}])
    order = [page.index('id="' + name + '"') for name in ("as_it_was", "poor", "good")]
    assert order == sorted(order)
    assert page.index("torn.nii.gz is &lt;damaged&gt;.") < order[0]
    for text in ("anna &amp; co", "0.200 before, 0.900 after", "12.3 mm", "1234 mL, from labels", "90 % of the brain"):
        assert text in page
    links = Links()
    links.feed(page)
    assert set(links.targets) == set(pictures.values())
    assert "http" not in page


def test_page_without_failures_says_so():
    assert "None was left out" in quality_page({"a": record(1)}, {"a": "quality/a.png"}, [])
