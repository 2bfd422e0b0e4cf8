"""What the names of files say of their contrast."""

import pytest

from scripts.contrasts import contrast_in_name


@pytest.mark.parametrize(
    ("stem", "contrast"),
    [
        *[(f"BraTS20_Training_001_{ending}", name) for ending, name in (("flair", "FLAIR"), ("t1ce", "T1ce"))],
        *[("BraTS20_Training_001_seg", "labels"), ("BraTS20_Training_001_t1", "T1")],
        *[(f"BraTS-GLI-00000-000-{ending}", name) for ending, name in (("t2f", "FLAIR"), ("t1n", "T1"), ("t2w", "T2"))],
        *[("sub-01_ses-1_run-2_T1w", "T1"), ("sub-01_FLAIR", "FLAIR"), ("sub-01_space-T1w_desc-brain_mask", "labels")],
        *[("IXI002-Guys-0828-T1", "T1"), ("IXI002-Guys-0828-PD", "PD"), ("IXI002-Guys-0828-MRA", "mra")],
        *[("sub-01_acq-3d_ct", "CT"), ("t1", "T1"), ("anna_t2-flair", "FLAIR"), ("anna_T1_brain_1mm", "T1")],
        *[("anna_flair_2", "FLAIR"), ("T1_FLAIR", "FLAIR"), ("sub-01_dwi", "dwi"), ("sub-01_dseg", "labels")],
        *[("T1_to_FLAIR", "T1"), ("FLAIR_to_T1", "FLAIR"), ("anna_T1_in_FLAIR_space", None), ("t2_reg_flair", "T2")],
        *[("sub-01_T1w_space-FLAIR", "T1"), ("sub-01_space-FLAIR_T1w", "T1"), ("sub-01_space-T1w_FLAIR", "FLAIR")],
        *[("T1_in_FLAIR", "T1"), ("FLAIR_reg_to_T1_brain", "FLAIR"), ("anna_reg_flair", "FLAIR"), ("to_t1", "T1")],
        *[("t1_mprage_sag", "T1"), ("t1_post", "T1"), ("t2_tirm_tra_dark-fluid", "FLAIR"), ("flair_fs", "FLAIR")],
        *[("anna", None), ("scout_2", None), ("anna_mri", None), ("at1", None), ("", None), ("t1x_follow", None)],
    ],
)
def test_contrast_in_name(stem, contrast):
    assert contrast_in_name(stem) == contrast
