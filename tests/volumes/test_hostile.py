"""Hostile NIfTI: whatever was done to a file, what comes out is the right image or one sentence.

A seed decides what is done. The phantom is a ramp: its values are places in mm, so that each voxel tells where it is.
"""

import gzip
import itertools
import os
import random
import time

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from scripts.data.datalists import inference_datalist
from scripts.errors import reason
from scripts.transforms.checks import CheckVolumed
from scripts.volumes.load import LoadVolumed

READ = Compose([LoadVolumed("image"), EnsureChannelFirstd("image"), CheckVolumed("image")])
SHAPE = (18, 20, 22)
HEADER = nib.Nifti1Header.template_dtype
PLACING = ("sizeof_hdr", "dim", "pixdim", "qform_code", "sform_code", "quatern", "qoffset", "srow", "magic")
STORING = ("datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter")
NUMBERS = (0, -1, 1, 2, 3, 7, 64, 4096, 32767, 1e30, 1e-30, float("nan"), float("inf"))
NAMES = (b"a", b"a b", b"a#b", b"$a", b"a;b", b"M\xc3\xbcller", b"M\xfcller", b"a'b", b"-a", b"a\nb", b"%41", b"{a}")
TURNS = [
    np.array([flips[axis] * np.eye(3)[order.index(axis)] for axis in range(3)])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def value_of(places):
    """What the ramp has at places (..., 3) in mm."""
    return 500 + places @ [1, 0.5, 2]


def ramp(affine, shape=SHAPE):
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return nib.Nifti1Image(value_of(places).astype(np.float32), affine)


def changed_field(content, rng):
    """A field of the header with a number that may be impossible; whether it says where voxels lie or how."""
    header = np.frombuffer(content[:348], dtype=HEADER).copy()
    name = rng.choice(HEADER.names)
    field = header[name][0]
    with np.errstate(all="ignore"):
        value = np.array(rng.choice(NUMBERS)).astype(field.dtype) if field.dtype.kind in "iuf" else b"\xff"
    if field.ndim:
        field[rng.randrange(field.size)] = value
    else:
        header[name][0] = value
    return header.tobytes() + content[348:], not name.startswith((*PLACING, *STORING))


def changed_bits(content, rng):
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(348)] ^= 1 << rng.randrange(8)
    return bytes(changed), False


def cut_off(content, rng):
    return content[: rng.choice((0, 1, 347, 348, 352, len(content) // 2, len(content) - 1))], False


def lengthened(content, rng):
    return content + rng.choice((content, b"\0" * 1000, b"x")), True


def of_odd_values(content, rng):
    image = nib.Nifti1Image.from_bytes(content)
    values = image.get_fdata(dtype=np.float32)
    values[rng.choice(((0, 0, 0), (slice(None),) * 3, (slice(5, 9),) * 3))] = rng.choice((np.nan, np.inf, -np.inf, 7))
    return nib.Nifti1Image(values, image.affine).to_bytes(), False


def of_odd_size(content, rng):
    shape = rng.choice(((1, 1, 1), (0, 4, 4), (4096, 1, 1), (1, 4096, 4), (2, 2, 2), (18, 20, 22, 1), (18, 20, 22, 3)))
    edges = rng.choice((1e-6, 0.01, 8.0, 900.0, 1e7))
    return nib.Nifti1Image(np.ones(shape, np.float32), np.diag([edges, edges, edges, 1.0])).to_bytes(), False


def as_it_is(content, rng):
    return content, True


CHANGES = (changed_field, changed_field, changed_bits, cut_off, lengthened, of_odd_values, of_odd_size, as_it_is)


def hostile_folder(folder, rng):
    """Write one file of any name; whether its image has to be right where it comes out."""
    turn = rng.choice(TURNS)
    axes = turn @ np.diag([8.0, 9.0, 7.0])
    affine = nib.affines.from_matvec(axes, -axes @ (np.array(SHAPE) - 1) / 2 + rng.uniform(-40, 40))
    image = ramp(affine)
    image.set_sform(affine, rng.choice((1, 2)))
    image.set_qform(affine, rng.choice((0, 1)))
    content, is_right = rng.choice(CHANGES)(image.to_bytes(), rng)
    packed, named = rng.random() < 0.3, rng.random() < 0.3
    name = rng.choice(NAMES) + (b".nii.gz" if named else b".nii")
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(gzip.compress(content) if packed else content)
    return is_right


def is_sentence(text):
    return text[:1].strip() and text.endswith(".") and "\n" not in text and "Unforeseen" not in text


def read(item):
    """The image, or what the main job says of the case."""
    try:
        return READ(item)["image"], ""
    except Exception as error:
        return None, reason(error)


def check(folder, seed):
    """Whether there was an image, and it had to be right and was."""
    is_right = hostile_folder(folder, random.Random(seed))
    begun = time.monotonic()
    (item,) = inference_datalist(folder)
    if "failure" in item:
        assert is_sentence(item["failure"]), item["failure"]
        return False
    image, refusal = read(item)
    assert time.monotonic() - begun < 60
    if image is None:
        assert is_sentence(refusal), refusal
        return False
    values, affine = np.asarray(image[0]), np.asarray(image.affine)
    assert np.isfinite(values).all()
    assert np.isfinite(affine).all()
    if is_right:
        places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(values.shape), 0, -1))
        np.testing.assert_allclose(values, value_of(places), atol=1e-2)
    return is_right


@pytest.mark.parametrize("first", range(0, 600, 50))
def test_the_right_image_or_a_sentence(tmp_path, first):
    right = 0
    for seed in range(first, first + 50):
        (tmp_path / str(seed)).mkdir()
        right += check(tmp_path / str(seed), seed)
    assert right >= 10  # the property is not met by refusing everything
