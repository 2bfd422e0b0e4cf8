"""Style keys: what they are made of, what they do not depend on, and how they are found."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.conditioning.style_key import (
    average_style_key,
    choose_style_key,
    compute_style_key,
    load_style_keys,
    named_style_key,
    nearest_style_key,
    resolve_style_key,
    save_style_keys,
    unknown_style_keys,
)


def brain(seed: int = 0, shape: tuple[int, ...] = (24, 25, 26)) -> np.ndarray:
    """A ball of three tissues with noise, on background 0, in [0, 1]."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(0)) + 0.05 * seed
    tissue = np.select([radius < 0.4, radius < 0.7, radius < 0.85], [0.75, 0.5, 0.2])
    return np.where(tissue > 0, np.clip(tissue + 0.05 * rng.standard_normal(shape), 0.01, 1), 0).astype(np.float32)


def test_key_against_counting_by_hand():
    image = brain()
    h = np.zeros(128)
    for value in image.ravel():
        if value > 0.001:
            h[min(int((float(value) - 0.001) / 0.999 * 128), 127)] += 1
    h *= 10 / h.sum()
    slope = [h[1] - h[0], *(h[i + 1] - h[i] for i in range(127))]
    key = compute_style_key(image)
    assert key.shape == (3, 128)
    assert key.dtype == np.float32
    np.testing.assert_allclose(key, [h, np.cumsum(h), 10 * np.array(slope)], atol=1e-4)


@pytest.mark.parametrize("num_bins", [16, 128])
def test_histogram_sums_to_10_and_the_cumulative_one_ends_there(num_bins):
    key = compute_style_key(brain(1), num_bins)
    assert key.shape == (3, num_bins)
    assert key[0].sum() == pytest.approx(10, abs=1e-4)
    assert key[1, -1] == pytest.approx(10, abs=1e-4)
    assert (np.diff(key[1]) >= 0).all()


def test_key_does_not_depend_on_order_background_container_or_values_beyond_the_range():
    image = brain(2)
    key = compute_style_key(image)
    shuffled = np.random.default_rng(0).permutation(image.ravel())
    np.testing.assert_array_equal(compute_style_key(shuffled), key)
    np.testing.assert_array_equal(compute_style_key(np.pad(image, 9)), key)
    np.testing.assert_array_equal(compute_style_key(torch.from_numpy(image)[None, None]), key)
    np.testing.assert_array_equal(compute_style_key(np.where(image == 0, -0.5, image)), key)
    bright = np.where(image > 0.9, 1.0, image)
    np.testing.assert_array_equal(compute_style_key(np.where(bright == 1, 7.0, bright)), compute_style_key(bright))


def test_eight_bit_images_leave_no_comb():
    """Grey levels of an 8-bit image are spread: the key stays near that of the image before rounding."""
    image = np.clip(brain(3, (50, 50, 50)), 0, 1)
    key, rounded = compute_style_key(image), np.round(image * 90) / 90
    comb = np.histogram(rounded[rounded > 0.001], 128, (0.001, 1))[0]
    comb = 10 * comb / comb.sum()
    eight_bit = compute_style_key(rounded)
    assert eight_bit[0].sum() == pytest.approx(10, abs=1e-4)
    assert np.abs(comb - key[0]).sum() > 2
    assert np.abs(eight_bit[0] - key[0]).sum() < 0.5
    np.testing.assert_array_equal(compute_style_key(np.random.default_rng(0).permutation(rounded.ravel())), eight_bit)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 4)), np.zeros((0, 3)), np.full((4, 4), np.nan), np.array([0.5, np.inf])]
)
def test_images_without_a_histogram_are_refused(image):
    with pytest.raises(ValueError, match=r"empty|NaN"):
        compute_style_key(image)


def test_average_of_keys_is_the_key_of_the_mean_histogram():
    keys = [compute_style_key(brain(i)) for i in range(3)]
    average = average_style_key(keys)
    np.testing.assert_allclose(average[0], (keys[0][0] + keys[1][0] + keys[2][0]) / 3, atol=1e-6)
    np.testing.assert_allclose(average[1], np.cumsum(average[0]), atol=1e-4)
    np.testing.assert_allclose(average[2, 1:], 10 * np.diff(average[0]), atol=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        average_style_key([])


def test_nearest_key():
    keys = {name: compute_style_key(brain(i)) for i, name in enumerate("abc")}
    for name, key in keys.items():
        assert nearest_style_key(key, keys) == name
    assert nearest_style_key(0.9 * keys["b"] + 0.1 * keys["c"], keys) == "b"
    with pytest.raises(ValueError, match="at least one"):
        nearest_style_key(keys["a"], {})


def test_keys_on_disk(tmp_path):
    keys = {"average": compute_style_key(brain(0)), "colin27": compute_style_key(brain(1))}
    path = tmp_path / "keys.json"
    save_style_keys(keys, path, licence="CC0")
    assert json.loads(path.read_text())["licence"] == "CC0"
    loaded = load_style_keys(path)
    assert list(loaded) == list(keys)
    for name in keys:
        np.testing.assert_array_equal(loaded[name], keys[name])
        np.testing.assert_array_equal(resolve_style_key(name, path), keys[name])
    none = resolve_style_key("none", path)
    assert none.shape == keys["average"].shape
    assert not none.any()
    with pytest.raises(ValueError, match=r"nearest is neither a known name nor a file; use one of average, colin27,"):
        resolve_style_key("nearest", path)
    for broken in ("[]", "{}", "no JSON", '{"keys": {"a": [[1, 2], [3]]}}', '{"keys": {"a": [1, 2]}}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"keys\.json"):
            load_style_keys(path)


def test_without_a_file_a_name_is_told_what_to_do_and_no_style_needs_none(tmp_path, keys_file):
    missing = tmp_path / "runs" / "style_keys.json"
    said = f"There is no {missing} with the keys of these weights; give --style_keys_file, or --style_key none"
    with pytest.raises(ValueError, match=f"^{said} or the path of a skull-stripped T1 volume\\.$"):
        resolve_style_key("average", missing)
    with pytest.raises(ValueError, match=f"^{said}\\.$"):
        choose_style_key("best", missing, brain(0))
    with pytest.raises(ValueError, match=f"^{said}\\.$"):
        named_style_key("average", missing)
    none = resolve_style_key("none", missing, "T1")
    np.testing.assert_array_equal(none, np.zeros_like(resolve_style_key("average", keys_file)))
    assert none.dtype == np.float32


def test_a_volume_needs_no_keys_file_and_does_not_hide_a_name(tmp_path, keys_file, monkeypatch):
    path = write(tmp_path / "t1.nii.gz", brain(4))
    np.testing.assert_array_equal(resolve_style_key(path, tmp_path / "none.json"), resolve_style_key(path, keys_file))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "average").write_text("no image")
    np.testing.assert_array_equal(resolve_style_key("average", keys_file), compute_style_key(brain()))


@pytest.fixture
def keys_file(tmp_path):
    save_style_keys({"average": compute_style_key(brain())}, tmp_path / "keys.json")
    return tmp_path / "keys.json"


def write(path, voxels, spacing=4.0):
    """A volume of 24 x 25 x 26 voxels at 4 mm is 1.0 litres; brain() fills a third of it."""
    image = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(image(voxels.astype(np.float32), np.diag([-spacing, -spacing, spacing, 1.0])), path)
    return path


@pytest.mark.parametrize("name", ["t1.nii.gz", "t1.nii", "t1.mgz"])
def test_key_of_a_volume_on_disk_is_that_of_the_scaled_volume(tmp_path, keys_file, name):
    image = brain(4)
    path = write(tmp_path / name, 3000 * image)
    expected = compute_style_key(np.clip(image / np.percentile(image[image > 0], 99.9), 0, 1))
    for given in (path, str(path)):
        np.testing.assert_allclose(resolve_style_key(given, keys_file), expected, atol=0.1)
        assert np.abs(resolve_style_key(given, keys_file)[0] - expected[0]).sum() < 0.01


def test_volumes_that_are_no_stripped_brain_are_refused_by_name(tmp_path, keys_file):
    image = brain(5)
    noise = np.random.default_rng(0).uniform(1, 2, image.shape)
    cases = {
        "noise": (write(tmp_path / "noise.nii.gz", image + 0.1 * noise), "constant background"),
        "head": (write(tmp_path / "head.nii.gz", image, spacing=12.0), "strip its skull"),
        "empty": (write(tmp_path / "empty.nii.gz", 0 * image), "empty"),
        "4d": (write(tmp_path / "four.nii.gz", np.stack([image, image], -1)), "one 3D volume"),
        "nan": (write(tmp_path / "nan.nii.gz", np.where(image > 0.7, np.nan, image)), "NaN or infinite"),
    }
    contradictory = nib.load(cases["empty"][0])
    contradictory.set_qform(np.diag([4.0, 4.0, 4.0, 1.0]), 1)
    contradictory.set_sform(np.diag([-4.0, 4.0, 4.0, 1.0]), 1)
    nib.save(contradictory, tmp_path / "mirrored.nii.gz")
    cases["mirrored"] = (tmp_path / "mirrored.nii.gz", "sform with the axes")
    truncated = tmp_path / "truncated.nii.gz"
    truncated.write_bytes(cases["head"][0].read_bytes()[:2000])
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    cases |= {"truncated": (truncated, "cannot be read"), "text": (text, "cannot be read")}
    for path, reason in cases.values():
        with pytest.raises(ValueError, match=reason) as caught:
            resolve_style_key(path, keys_file)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.shared_data
def test_real_whole_heads_are_refused_and_real_brains_are_not(shared_data, keys_file):
    subjects = json.loads((shared_data / "subjects.json").read_text())
    volumes = {s["id"]: s for s in subjects if "T1" in s}
    for name in (
        "template_skull",
        "template_brain",
        "ms_mni_07",
        "ms_native_01_study1",
        "nichart_01",
        "colin27",
        "mne_ecog",
    ):
        path = shared_data / volumes[name]["T1"]
        if volumes[name]["skull_stripped"]:
            assert resolve_style_key(path, keys_file)[0].sum() == pytest.approx(10, abs=1e-4)
        else:
            with pytest.raises(ValueError, match="strip its skull"):
                resolve_style_key(path, keys_file)


def test_best_is_the_nearest_training_subject_but_never_the_target_itself(tmp_path):
    rng = np.random.default_rng(0)
    images = {name: rng.normal(mean, 0.1, (12, 12, 12)).clip(0.01, 1) for name, mean in (("anna", 0.3), ("bert", 0.7))}
    keys = {name: compute_style_key(image) for name, image in images.items()}
    file = tmp_path / "keys.json"
    near_anna = compute_style_key(images["anna"] * 0.99)
    save_style_keys({**keys, "average": near_anna, "colin27": near_anna}, file)  # neither is a subject's own
    name, key = choose_style_key("best", file, images["anna"], subject="someone else")
    assert name == "anna"
    np.testing.assert_array_equal(key, keys["anna"])
    assert choose_style_key("best", file, images["anna"], subject="anna")[0] == "bert"
    save_style_keys({**keys, "colin27#brain": near_anna}, file)
    assert choose_style_key("best", file, images["anna"] * 0.99)[0] == "colin27#brain"
    save_style_keys({**keys, "average": near_anna}, file)
    assert choose_style_key(None, file, images["anna"]) == (None, None)
    assert choose_style_key("average", file, images["anna"])[0] == "average"
    with pytest.raises(ValueError, match="best is that of the training subject nearest to the real MRI"):
        resolve_style_key("best", file)


def test_of_several_contrasts_the_key_is_one_of_the_target_s_contrast(tmp_path):
    """`PERSON#SCAN#CONTRAST`: neither another contrast's nor one of the target's own person is taken for best."""
    rng = np.random.default_rng(0)
    images = {mean: rng.normal(mean, 0.1, (12, 12, 12)).clip(0.01, 1) for mean in (0.3, 0.5, 0.7)}
    keys = {mean: compute_style_key(image) for mean, image in images.items()}
    named = {"anna#T1": keys[0.7], "anna#T2": keys[0.3], "bert#first#T1": keys[0.3], "bert#later#T1": keys[0.5]}
    file = tmp_path / "keys.json"
    save_style_keys(named, file)
    assert choose_style_key("best", file, images[0.3], "cleo", "T1")[0] == "bert#first#T1"
    for whose in ("first", "bert"):  # both others are of bert
        assert choose_style_key("best", file, images[0.5], whose, "T1")[0] == "anna#T1"
    assert choose_style_key("best", file, images[0.7], "cleo", "T2")[0] == "anna#T2"
    with pytest.raises(ValueError, match="no key of a training subject's PD"):
        choose_style_key("best", file, images[0.3], "cleo", "PD")
    np.testing.assert_array_equal(resolve_style_key("anna#T2", file, "T2"), keys[0.3])
    with pytest.raises(ValueError, match=r"anna#T2 is of a T2, but a T1 is made; .* ends in #T1"):
        resolve_style_key("anna#T2", file, "T1")
    with pytest.raises(ValueError, match=r"ends in #T1, or none\.$"):  # a request takes no paths
        named_style_key("anna#T2", file, contrast="T1")
    assert not resolve_style_key("none", file, "T1").any()


def test_unknown_styles_are_those_of_the_people_part_of_the_way_from_the_average(tmp_path):
    keys = {name: np.full((3, 4), value, np.float32) for name, value in (("anna", 1), ("bert", 3), ("average", 2))}
    save_style_keys({**keys, "colin27": keys["anna"]}, tmp_path / "keys.json")
    found = unknown_style_keys("average", tmp_path / "keys.json", spread=0.5)
    assert [float(key[0, 0]) for key in found] == [1.5, 2.5]
    assert unknown_style_keys("anna", tmp_path / "keys.json") == []
    assert unknown_style_keys("my_t1.nii.gz", tmp_path / "keys.json") == []
