"""A small folder of results as the main job leaves it, with real images beside it."""

import json

import nibabel as nib
import pytest

from scripts.files import sha256_of_file
from tests.report.phantom import NAMES, SHAPE, SPACING, phantom


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """(output folder of the main job, its dataset_dir, folder of real images): three cases, one of them failed."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("in/Doe Jane", "out", "real"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        ct, t1, affine = phantom(0.1 * number)
        source = folder / "in" / "Doe Jane" / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(ct, affine), source)
        nib.save(nib.Nifti1Image(t1, affine), folder / "out" / f"{name}_t1.nii.gz")
        nib.save(nib.Nifti1Image(1000 * (t1 - 0.1 * (t1 > 0)), affine), folder / "real" / f"{name}.nii.gz")
        record = {
            "bundle": "brain_ct_to_mri",
            "hu_window": [0, 80],
            "style_key": "</script><script>alert(1)</script>",
            "source": {"file": f"Doe Jane/{name}.nii.gz", "sha256": sha256_of_file(source)},
            "grid": {"voxels": list(SHAPE), "spacing_mm": [SPACING] * 3, "orientation": "as in the source's header"},
            "sparse": {"gap_mm": SPACING},
            "measured": {
                "source_distance": round(0.3 - 0.1 * number, 3),
                "source_distance_limit": 0.25,
                "source_median": 25.0,
            },
        }
        (folder / "out" / f"{name}_t1.json").write_text(json.dumps(record))
    failures = [{"case": "d", "file": "d.nii.gz", "reason": "d.nii.gz is <i>empty</i>; export it again."}]
    (folder / "out" / "failures.json").write_text(json.dumps(failures))
    return folder / "out", folder / "in", folder / "real"
