"""What the names of files say of their contrast."""

import pytest

from scripts.contrasts import (
    agent_in_entity,
    contrast_in_name,
    contrasts_of,
    is_agent,
    name_before_contrast,
    speaks_of_contrast,
    target_among,
)
from scripts.errors import CaseError


@pytest.mark.parametrize(
    ("stem", "contrast"),
    [
        *[(f"BraTS20_Training_001_{ending}", name) for ending, name in (("flair", "FLAIR"), ("t1ce", "T1ce"))],
        *[("BraTS20_Training_001_seg", "labels"), ("BraTS20_Training_001_t1", "T1")],
        *[(f"BraTS-GLI-00000-000-{ending}", name) for ending, name in (("t2f", "FLAIR"), ("t1n", "T1"), ("t2w", "T2"))],
        *[("sub-01_ses-1_run-2_T1w", "T1"), ("sub-01_FLAIR", "FLAIR"), ("sub-01_space-T1w_desc-brain_mask", "labels")],
        *[("IXI002-Guys-0828-T1", "T1"), ("IXI002-Guys-0828-PD", "PD"), ("IXI002-Guys-0828-MRA", "mra")],
        *[
            ("sub-01_acq-3d_ct", "CT"),
            ("t1", "T1"),
            ("anna_t2-flair", "FLAIR"),
            ("anna_T1_brain_1mm", "T1"),
            ("t2_tse", "T2"),
        ],
        *[("anna_flair_2", "FLAIR"), ("T1_FLAIR", None), ("sub-01_dwi", "dwi"), ("sub-01_dseg", "labels")],
        *[("T1_to_FLAIR", "T1"), ("FLAIR_to_T1", "FLAIR"), ("anna_T1_in_FLAIR_space", "T1"), ("t2_reg_flair", "T2")],
        *[("sub-01_T1w_space-FLAIR", "T1"), ("sub-01_space-FLAIR_T1w", "T1"), ("sub-01_space-T1w_FLAIR", "FLAIR")],
        *[("T1_in_FLAIR", "T1"), ("FLAIR_reg_to_T1_brain", "FLAIR"), ("anna_reg_flair", "FLAIR"), ("to_t1", "T1")],
        *[("t1_mprage_sag", "T1"), ("t1_post", "T1ce"), ("t2_tirm_tra_dark-fluid", "FLAIR"), ("flair_fs", "FLAIR")],
        *[("anna_T1_gd", "T1ce"), ("sub-01_ce-gadolinium_T1w", "T1ce"), ("ax_gad_t1", "T1ce"), ("flair_gd", "FLAIR")],
        *[("sub-01_ses-post_T1w", "T1"), ("t1_pre", "T1"), ("anna_ce_FLAIR", "FLAIR")],
        *[("anna", None), ("scout_2", None), ("anna_mri", None), ("at1", None), ("", None), ("t1x_follow", None)],
    ],
)
def test_contrast_in_name(stem, contrast):
    assert contrast_in_name(stem) == contrast


@pytest.mark.parametrize(
    ("stem", "whose"),
    [
        *[("anna_t2", "anna"), ("BraTS-GLI-00000-000-t1n", "BraTS-GLI-00000-000"), ("Brats18_1_t1ce", "Brats18_1")],
        *[("IXI012-HH-1211-PD", "IXI012-HH-1211"), ("t1", ""), ("3D_FLAIR", ""), ("anna_T2_FLAIR", "anna")],
        *[("anna_t1_mprage_sag", "anna"), ("anna_flair_reg_t1", "anna"), ("x_7", "x_7")],
        *[("anna_ce_t1", "anna"), ("anna_T2_dark-fluid", "anna")],
    ],
)
def test_what_stands_before_the_contrast_says_whose_it_is(stem, whose):
    assert name_before_contrast(stem) == whose


@pytest.mark.parametrize(
    "stem",
    [
        *("anna_ce_t1", "anna_dotarem_t1", "t1_km", "anna_T1_contrast", "anna_T1_post_contrast", "T1+C", "t1_c"),
        *("anna_gd_t1_sag", "anna_mprage_gd", "anna_t1_gadovist", "sub-01_rec-gd_T1w", "anna_kontrast_t1", "t1_ce"),
        *("t1_with_contrast", "t1km", "t1gado", "t1c", "t1post", "t1_with_gd", "t1_mit_km", "t1_nach_km", "T1 +C"),
        *("t1 post gad", "post_gad_t1", "t1postcontrast", "t1_magnevist", "t1_gadobutrol", "t1_vibe_km", "t1_plus_c"),
        *("t1_avec_gado", "t1_con_mdc", "mpragegd", "t1_mprage_p2_gd", "t1_space_gd", "t1_gd_native", "t1_c+"),
    ],
)
def test_a_word_of_an_agent_makes_a_t1_a_t1ce(stem):
    assert contrast_in_name(stem) == "T1ce"


@pytest.mark.parametrize(
    "stem",
    [
        *("sub-01_ce-none_T1w", "t1_pre", "t1_pre_contrast", "anna_t1_without_contrast", "t1_nogd", "t1_precontrast"),
        *("t1_w/o_contrast", "T1 -C", "t1_c-", "t1_sans_injection", "t1_senza_mdc", "t1_unenhanced", "noncontrast_t1"),
    ],
)
def test_a_t1_without_agent_stays_a_t1(stem):
    assert contrast_in_name(stem) == "T1"


@pytest.mark.parametrize(
    "stem",
    [
        *("anna_post_t1", "sub-01_acq-post_T1w", "t1_post_op", "t1_postop", "anna_pre_gd_t1", "t1_dce", "dce_t1"),
        *("sub_t1", "t1_sub", "t1ce_minus_t1", "flair_t1", "t1_tirm", "T1-FLAIR", "mprage_flair", "pd_t2", "T1_T2"),
        *("t2_tirm_tra", "tirm_t2", "t2_star", "T2star", "T2*", "t2_hemo", "gre_t2", "t2_gre", "dwi_t2", "perf_t2"),
        *("dsc_t2", "swi_t2", "t2_stir", "ep2d_diff_t2", "sub-01_inv-1_MP2RAGE", "t2_space_flair"),
        *("t2_flair_space", "t2_flash", "flash_t2", "t1_tof", "tof_t1", "t1_map_flash", "adc_t1_space", "t1_dyn_vibe"),
        *("t1_pre_post", "t1_with_and_without_contrast", "t1_w_wo_gd", "post_gd_anna_t1", "with_contrast_anna_t1"),
        *("t1_low_contrast", "t1_tse_dark-fluid", "t1ce_without_contrast", "t1rho", "mask_t1", "t1_contrast_free"),
    ],
)
def test_what_is_not_clear_is_no_contrast_and_its_folder_must_not_tell_one(stem):
    assert contrast_in_name(stem) is None
    assert speaks_of_contrast(stem)


@pytest.mark.parametrize(
    ("contrast", "stems"),
    [
        ("T1", "vibe mprage space spc flash bravo tfe ffe gre se tse fspgr fl3d cube mpr mprage_sag_p2_iso"),
        *[("T2", "tse fse space spc se cube blade haste"), ("FLAIR", "space spc cube tirm tse"), ("PD", "tse fse se")],
    ],
)
def test_words_of_sequences_leave_a_contrast_what_it_is(contrast, stems):
    for word in stems.split():
        stem = f"anna_{contrast}_{word}"
        assert (contrast_in_name(stem), name_before_contrast(stem)) == (contrast, "anna"), stem


@pytest.mark.parametrize(
    ("value", "told"),
    [
        *[(value, True) for value in ("gd", "mprageGd", "axgd", "postContrast", "T1ce", "t1c", "3DCE", "spaceCE")],
        *[(value, False) for value in ("space", "noGd", "preContrast", "withoutContrast", "hires", "posterior", "iso")],
        ("post", None),
    ],
)
def test_an_entity_of_bids_tells_of_an_agent(value, told):
    """`acq-space` ends in the letters of `ce` and tells of none."""
    assert agent_in_entity("acq", value) is told


@pytest.mark.parametrize("name", ["gd", "KM", "with_contrast", "anna_post_gad"])
def test_a_folder_may_be_named_by_an_agent(name):
    assert is_agent(name)
    assert not is_agent(f"{name}1 scans")
    assert not is_agent("post")


@pytest.mark.parametrize("stem", ["anna", "2019", "scan", "sub-01", "mri", "T1000", "anna_3d_ax"])
def test_what_speaks_of_no_contrast_leaves_it_to_the_folder(stem):
    assert not speaks_of_contrast(stem)


def test_contrasts_that_are_typed_come_in_the_order_of_those_that_are_known():
    known = ["T1", "T2", "FLAIR"]
    assert contrasts_of("use_contrasts", "flair, t1w", known) == ["T1", "FLAIR"]
    assert contrasts_of("use_contrasts", ("FLAIR", "T2"), known) == contrasts_of("use_contrasts", "['T2','t2f']", known)
    assert contrasts_of("use_contrasts", None, known) == known
    for wrong in ("PD", "[]", "T2,PD"):
        with pytest.raises(CaseError, match="use some of T1, T2, FLAIR"):
            contrasts_of("use_contrasts", wrong, known)


def test_a_target_that_was_not_learned_is_refused_with_those_that_were(caplog):
    assert target_among("t1w", ["T1", "T2"]) == "T1"
    assert not caplog.records
    assert target_among("t1gd", ["T1", "T1ce"]) == "T1ce"
    assert "A synthetic T1ce has no enhancement that its sources do not show" in caplog.text
    with pytest.raises(CaseError, match="have not learned to make a PD; give as target_contrast T1, T1ce or T2"):
        target_among("PD", ["T1", "T1ce", "T2"])
