"""The spread of samples: what the evidence says of noise and slices, and where an image is therefore uncertain."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from scripts.inferers import ISTAInferer, UncertaintyInferer
from scripts.inferers.evidence import Evidence, correlated_noise, measure_noise, slice_thickness, slices_at
from scripts.schedulers import BrownianBridgeScheduler
from tests.phantoms import EchoNetwork, ball_brain

ALL = torch.ones(48, 48, 48, dtype=torch.bool)


def noise(correlation=(0.0, 0.0, 0.0), seed=0, shape=(48, 48, 48)):
    return correlated_noise(shape, correlation, torch.Generator().manual_seed(seed))


def brain():
    """A brain of two tissues, (40, 48, 44), [0, 1], without noise, and its mask."""
    volume, mask = ball_brain()
    return torch.from_numpy(np.where(mask, np.where(volume > 750, 0.4, 0.5), 0.0).astype(np.float32)), mask


def inferer(samples=8, network_style=None, **arguments):
    own = ISTAInferer(BrownianBridgeScheduler(prediction_type="sample"), network_style, num_inference_steps=2)
    return UncertaintyInferer(own, samples, **arguments)


@pytest.mark.parametrize("correlation", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.1)])
def test_noise_has_the_variance_and_correlation_that_were_asked_for(correlation):
    made = noise(correlation).numpy()
    assert made.std() == pytest.approx(1, abs=0.06)
    for axis, rho in enumerate(correlation):
        first, second = np.take(made, range(47), axis), np.take(made, range(1, 48), axis)
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(rho, abs=0.05)


@pytest.mark.parametrize("correlation", [(0.0, 0.0, 0.0), (0.5, 0.4, 0.2)])
@pytest.mark.parametrize("level", [0.02, 0.1])
def test_noise_that_was_put_on_flat_tissue_is_measured(level, correlation):
    measured = measure_noise(0.5 + level * noise(correlation), ALL)
    assert float(measured.level[8:-8, 8:-8, 8:-8].mean()) == pytest.approx(level, rel=0.12)
    assert measured.correlation == pytest.approx(correlation, abs=0.08)


def test_edges_are_no_noise():
    """A brain of two tissues has the noise that was put on it, and without any it has hardly any."""
    image, mask = brain()
    inside = torch.from_numpy(mask)
    assert float(measure_noise(image, inside).level.max()) == 0
    noisy = (image + 0.05 * noise(shape=image.shape)) * inside
    assert float(measure_noise(noisy, inside).level[inside].median()) == pytest.approx(0.05, rel=0.15)


def test_noise_is_measured_where_it_is():
    stronger = torch.where(torch.arange(48) < 24, 0.1, 0.025)[:, None, None]
    level = measure_noise(0.5 + stronger * noise(), ALL).level
    assert float(level[:8].mean() / level[-8:].mean()) == pytest.approx(4, rel=0.25)


def test_evidence_keeps_background_and_range_and_doubles_the_variance():
    image, mask = brain()
    inside = torch.from_numpy(mask)
    noisy = (image + 0.05 * noise(shape=image.shape)).clamp(0.01, 1) * inside
    drawn = Evidence.of(noisy).drawn(torch.Generator().manual_seed(1))
    assert not drawn[~inside].any()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    core = torch.from_numpy(ndimage.binary_erosion(mask, iterations=8))
    assert float((drawn - image)[core].std()) == pytest.approx(0.05 * 2**0.5, rel=0.1)


def test_slices_read_where_they_were_are_the_same_image_and_elsewhere_a_ramp_stays_a_ramp():
    values = torch.rand(4, 4, 7, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(4, 4, 25, dtype=torch.bool)
    # slices 4 voxels apart, linear in between
    image = torch.nn.functional.interpolate(values, 25, mode="linear", align_corners=True)
    torch.testing.assert_close(slices_at(image, inside, 2, 4.0, 0.0), image, atol=1e-5, rtol=0)
    half = slices_at(image, inside, 2, 4.0, 0.5)
    torch.testing.assert_close(half[..., 2:23:4], (values[..., 1:] + values[..., :-1]) / 2, atol=1e-5, rtol=0)
    ramp = torch.linspace(0.2, 0.8, 25).expand(4, 4, 25)
    torch.testing.assert_close(slices_at(ramp, inside, 2, 4.0, 0.5)[..., 2:-3], ramp[..., 2:-3], atol=1e-5, rtol=0)


def test_slices_beside_the_brain_do_not_darken_it():
    _, mask = brain()
    flat = 0.5 * torch.from_numpy(mask)
    moved = slices_at(flat, flat > 0, 2, 4.0, 0.5)
    torch.testing.assert_close(moved, flat, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thickness_is_that_of_the_scan_along_the_axis_it_has_now(axis):
    spacing = np.insert([-0.5, 0.5], axis, 5.0)
    meta = {"original_affine": torch.from_numpy(nib.affines.from_matvec(np.diag(spacing)[[1, 0, 2]]))[None]}
    volume = MetaTensor(torch.zeros(1, 1, 4, 4, 4), affine=torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0])), meta=meta)
    thickness = slice_thickness(volume)
    now = [1, 0, 2].index(axis)
    assert thickness[now] == pytest.approx(5 / 1.5)
    assert max(t for a, t in enumerate(thickness) if a != now) == pytest.approx(1 / 3)
    assert slice_thickness(torch.zeros(1, 1, 4, 4, 4)) == (1.0, 1.0, 1.0)


def test_without_samples_the_image_alone_comes_out():
    image, _ = brain()
    one = inferer(0)
    torch.testing.assert_close(one(image[None, None], EchoNetwork()), one.inferer(image[None, None], EchoNetwork()))
    assert one.settings() == one.inferer.settings()


def test_the_image_stays_and_the_spread_is_that_of_the_samples():
    """Where the network gives the source back, the spread is the noise that was drawn; a seed gives one spread."""
    image, mask = brain()
    inside = torch.from_numpy(mask)
    noisy = ((image + 0.06 * noise(shape=image.shape)).clamp(0.01, 1) * inside)[None, None]
    made = inferer(12)(noisy, EchoNetwork())
    assert made.shape == (1, 2, *image.shape)
    torch.testing.assert_close(made[:, :1], inferer(0)(noisy, EchoNetwork()))
    core = torch.from_numpy(ndimage.binary_erosion(mask, iterations=6))
    assert float(made[0, 1][core].square().mean().sqrt()) == pytest.approx(0.06, rel=0.15)
    torch.testing.assert_close(inferer(4)(noisy, EchoNetwork()), inferer(4)(noisy, EchoNetwork()))
    assert not torch.equal(inferer(4, seed=1)(noisy, EchoNetwork()), inferer(4)(noisy, EchoNetwork()))


def test_where_noise_hides_the_tissue_the_image_is_uncertain():
    image, mask = brain()
    inside = torch.from_numpy(mask)
    hidden = torch.where(torch.arange(40) < 20, 0.08, 0.005)[:, None, None]
    noisy = ((image + hidden * noise(shape=image.shape)).clamp(0.01, 1) * inside)[None, None]
    spread = inferer()(noisy, EchoNetwork())[0, 1]
    assert spread[8:14][inside[8:14]].mean() > 4 * spread[26:32][inside[26:32]].mean()


def test_an_unknown_style_adds_to_the_spread_and_a_given_one_does_not():
    image, _ = brain()
    keys = [np.full((3, 4), value, np.float32) for value in (0.1, 0.2, 0.3, 0.4)]

    def network(x, timesteps, context=None, source=None):
        return context.mean(dim=(1, 2))[:, None, None, None].expand_as(x)

    flat = (0.5 * (image > 0))[None, None]
    known, unknown = inferer(4, keys[0]), inferer(4, keys[0], style_keys=keys)
    assert float(known(flat, network)[0, 1].max()) < 1e-6
    # network's range to images: half as much
    expected = np.std([0.05, 0.1, 0.15, 0.2], ddof=1)
    assert float(unknown(flat, network)[0, 1][image > 0].mean()) == pytest.approx(expected, rel=1e-4)
    assert float(unknown(flat, network, keys[1])[0, 1].max()) < 1e-6


def test_the_calibration_is_applied_and_recorded():
    class Doubled:
        def __call__(self, spread):
            return 2 * spread

        def settings(self):
            return {"factor": 2.0}

    image, mask = brain()
    noisy = ((image + 0.05 * noise(shape=image.shape)).clamp(0.01, 1) * torch.from_numpy(mask))[None, None]
    doubled = inferer(2, calibration=Doubled())
    torch.testing.assert_close(doubled(noisy, EchoNetwork())[:, 1], 2 * inferer(2)(noisy, EchoNetwork())[:, 1])
    assert doubled.settings()["uncertainty"] == {"samples": 2, "seed": 0, "styles": "as chosen", "factor": 2.0}


@pytest.mark.parametrize("samples", [1, -2, 2.5, True, "8"])
def test_a_number_of_samples_without_a_spread_is_refused(samples):
    with pytest.raises(ValueError, match="uncertainty is"):
        inferer(samples)
