"""Three tissues of a phantom whose tissues are known."""

import numpy as np
import pytest

from scripts.simulation.hmrf import three_classes

SHAPE = (26, 28, 24)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Labels of shells, 1 dark to 3 bright, 0 outside, and a noisy image of them."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.select([radius < 0.5, radius < 0.75, radius < 0.95], [3, 2, 1])
    noise = np.random.default_rng(0).normal(0, 0.03, SHAPE)
    return labels, (np.array([0, 0.2, 0.5, 0.9])[labels] + noise).astype(np.float32)


def test_classes_come_from_dark_to_bright_and_fractions_agree_with_them(phantom):
    labels, image = phantom
    classes, fractions = three_classes(300 * image, labels > 0)
    assert (classes == labels).mean() > 0.97
    np.testing.assert_allclose(fractions.sum(axis=0), labels > 0, atol=1e-5)
    assert ((1 + fractions.argmax(axis=0) == classes) | (labels == 0)).mean() > 0.97
    reversed_classes, _ = three_classes(1.1 - image, labels > 0)
    assert (reversed_classes == np.array([0, 3, 2, 1])[labels]).mean() > 0.97


def test_the_result_is_the_same_each_time_and_nothing_is_all_dark(phantom):
    labels, image = phantom
    first, second = (three_classes(image, labels > 0)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    classes, fractions = three_classes(0 * image, labels > 0)
    np.testing.assert_array_equal(classes, labels > 0)
    np.testing.assert_array_equal(fractions[0], labels > 0)
