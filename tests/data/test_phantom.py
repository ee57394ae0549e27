"""The phantom's promises: repeatable bytes, the physics of each contrast, a head of human form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage

from attcl_cli.data import phantom
from attcl_cli.data.phantom import PhantomCase, make_case
from attcl_cli.data.phantom_anatomy import ED, ET, NCR, draw_patient
from attcl_cli.data.phantom_scanner import (
    BLOOD,
    CSF,
    GM,
    MODALITIES,
    TISSUES,
    WM,
    Tissue,
    enhanced,
    inversion_recovery,
    null_ti_ms,
    scan,
    spin_echo,
)

HIGH_GRADE, LOW_GRADE = 1, 13  # cases of cohort 0


@dataclass
class Known:
    """A case and the tissue fractions (tissues, X, Y, Z) it was scanned from."""

    case: PhantomCase
    fractions: np.ndarray

    def median(self, modality: str, where: np.ndarray) -> float:
        assert where.sum() > 20
        return float(np.median(self.case.images[modality][where]))

    def pure(self, tissue: int) -> np.ndarray:
        """Voxels of nearly one tissue, away from the mask's edge."""
        inner = ndimage.binary_erosion(self.case.images["t1"] > 0, iterations=2)
        return inner & (self.fractions[tissue] > 0.85)


def known(index: int, *, tumour: bool, voxel_mm: float) -> Known:
    volume: list[np.ndarray] = []

    def spy(fractions, inside, *rest):
        volume.append(np.zeros((len(TISSUES), *inside.shape), np.float32))
        volume[0][:, inside] = fractions
        return scan(fractions, inside, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "scan", spy)
        case = make_case(index, tumour=tumour, voxel_mm=voxel_mm)
    return Known(case, volume[0])


@pytest.fixture(scope="module")
def healthy() -> Known:
    return known(HIGH_GRADE, tumour=False, voxel_mm=2)


@pytest.fixture(scope="module")
def sick() -> Known:
    return known(HIGH_GRADE, tumour=True, voxel_mm=2)


@pytest.fixture(scope="module")
def cohort() -> list[PhantomCase]:
    return [make_case(i, voxel_mm=5) for i in range(6)]


def arrays(case: PhantomCase) -> Iterator[np.ndarray]:
    yield from (case.images[m] for m in MODALITIES)
    yield case.segmentation
    yield case.affine


# Repeatability


def test_the_same_arguments_give_the_same_bytes_whatever_was_made_before():
    first = make_case(4, seed=7, voxel_mm=5)
    np.random.default_rng(0).random()
    make_case(5, seed=7, voxel_mm=5)
    second = make_case(4, seed=7, voxel_mm=5)
    assert first.id == second.id == "Phantom_00004"
    for a, b in zip(arrays(first), arrays(second), strict=True):
        assert a.tobytes() == b.tobytes()


def test_numpys_global_random_state_is_neither_read_nor_moved():
    np.random.seed(1)
    first = make_case(0, voxel_mm=6)
    after = np.random.random()
    np.random.seed(1)
    assert np.random.random() == after
    assert make_case(0, voxel_mm=6).images["t1"].tobytes() == first.images["t1"].tobytes()


@pytest.mark.parametrize("other", [{"index": 1}, {"index": 0, "seed": 1}])
def test_another_index_or_seed_is_another_patient(other, cohort):
    one, two = cohort[0], make_case(**other, voxel_mm=5)
    assert (one.segmentation != two.segmentation).any()
    for m in MODALITIES:
        assert ((one.images[m] > 0) != (two.images[m] > 0)).mean() > 0.005


def test_a_coarser_voxel_shows_the_same_head(sick):
    coarse = make_case(HIGH_GRADE, voxel_mm=4)
    for m in MODALITIES:
        fine = sick.case.images[m].astype(float)
        blocks = fine.reshape(60, 2, 60, 2, 39, 2).mean((1, 3, 5))
        both = (coarse.images[m] > 0) & (blocks > 0)
        assert both.sum() > 0.9 * (blocks > 0).sum()
        assert np.corrcoef(coarse.images[m][both], blocks[both])[0, 1] > 0.85
    kept = sick.case.segmentation[1::2, 1::2, 1::2] > 0
    overlap = 2 * (kept & (coarse.segmentation > 0)).sum()
    assert overlap > 0.75 * (kept.sum() + (coarse.segmentation > 0).sum())


def test_without_its_tumour_a_patient_keeps_head_and_scanner(healthy, sick):
    assert not healthy.case.segmentation.any()
    far = ndimage.distance_transform_edt(sick.case.segmentation == 0) > 20  # 40 mm
    brain = healthy.case.images["t1"] > 0
    assert (brain == (sick.case.images["t1"] > 0)).all()
    for m in MODALITIES:
        a, b = healthy.case.images[m][far & brain], sick.case.images[m][far & brain]
        assert np.corrcoef(a, b)[0, 1] > 0.98


# The files a reader expects


def test_volumes_have_the_types_shape_and_affine_of_brats():
    case = make_case(0, shape=(240, 240, 1))
    for m in MODALITIES:
        assert case.images[m].dtype == np.int16
        assert case.images[m].shape == (240, 240, 1)
    assert case.segmentation.dtype == np.uint8
    assert case.affine.dtype == np.float64
    # BraTS: diag(-1, -1, 1), translation (0, 239, 0); the one middle slice of 155 is number 77.
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 77], [0, 0, 0, 1]]
    np.testing.assert_array_equal(case.affine, expected)


@pytest.mark.parametrize("voxel_mm", [3, 4, 7.5])
def test_every_voxel_size_covers_the_field_around_the_same_centre(voxel_mm):
    case = make_case(0, voxel_mm=voxel_mm)
    shape = case.segmentation.shape
    assert shape == tuple(int(np.ceil(f / voxel_mm)) for f in (240, 240, 155))
    centre = case.affine @ [*((n - 1) / 2 for n in shape), 1]
    np.testing.assert_allclose(centre, [-119.5, 119.5, 77, 1])


def test_background_is_zero_at_the_same_voxels_in_every_modality(cohort):
    for case in cohort:
        brain = case.images["t1"] > 0
        assert 1.0e6 < brain.sum() * 5**3 < 1.75e6  # mm3
        for m in MODALITIES:
            assert ((case.images[m] > 0) == brain).all()
            assert case.images[m].min() == 0
        assert not case.segmentation[~brain].any()


def test_the_brain_lies_where_brats_has_it(healthy):
    # Ranges over the 20 real cases of the development cohort, a few mm added.
    index = np.argwhere(healthy.case.images["t1"] > 0) * 2
    (x0, y0, z0), (x1, y1, z1) = index.min(0), index.max(0)
    assert 42 < x0 < 58 and 180 < x1 < 196
    assert 32 < y0 < 62 and 202 < y1 < 222
    assert z0 < 18 and 128 < z1 < 148
    assert 126 < index[:, 1].mean() < 146


def test_labels_are_those_of_brats_2021(sick):
    assert set(np.unique(sick.case.segmentation)) == {0, NCR, ED, ET} == {0, 1, 2, 4}


def test_a_low_grade_tumour_has_a_core_but_does_not_enhance():
    labels = np.unique(make_case(LOW_GRADE, voxel_mm=3).segmentation)
    np.testing.assert_array_equal(labels, [0, NCR, ED])


def test_every_patient_has_a_tumour_and_about_one_in_seven_a_low_grade_one():
    drawn = [draw_patient(np.random.default_rng(i)).tumour for i in range(400)]
    assert 0.10 < np.mean([t.rim == 0 for t in drawn]) < 0.20


def test_scanner_units_differ_between_patients_and_modalities(cohort):
    for m in MODALITIES:
        highest = [int(c.images[m].max()) for c in cohort]
        assert max(highest) > 2 * min(highest)
    ratios = [c.images["t1"].max() / c.images["t2"].max() for c in cohort]
    assert max(ratios) > 1.5 * min(ratios)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "index -1"),
        ({"index": 0, "seed": -2}, "seed -2"),
        ({"index": 0, "voxel_mm": 0}, "voxel_mm 0"),
        ({"index": 0, "voxel_mm": float("nan")}, "voxel_mm nan"),
        ({"index": 0, "shape": (10, 10)}, "three numbers"),
        ({"index": 0, "shape": (10, 0, 10)}, "three numbers"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_case(**arguments)


# Physics


def test_spin_echo_is_the_textbook_equation():
    # TR = T1 ln 2 recovers one half; TE = T2 leaves 1/e: 0.8 * 0.5 / e
    tissue = Tissue(t1_ms=1000, t2_ms=80, pd=0.8)
    assert spin_echo(tissue, tr_ms=693.147181, te_ms=80) == pytest.approx(0.147152, abs=1e-6)


def test_inversion_recovery_is_the_textbook_equation():
    # TI = T1 ln 4 leaves 1 - 2/4; TR = T1 ln 10 adds 1/10: 0.6; TE = T2 leaves 1/e
    tissue = Tissue(t1_ms=1000, t2_ms=80, pd=1)
    times = {"tr_ms": 2302.585093, "te_ms": 80, "ti_ms": 1386.294361}
    assert inversion_recovery(tissue, **times) == pytest.approx(0.6 * 0.367879, abs=1e-6)


def test_the_null_time_of_csf_is_that_of_clinical_flair_and_nulls_it():
    ti_ms = null_ti_ms(TISSUES["csf"], tr_ms=9000)
    assert 2200 < ti_ms < 2600
    signal = inversion_recovery(TISSUES["csf"], tr_ms=9000, te_ms=105, ti_ms=ti_ms)
    assert signal == pytest.approx(0, abs=1e-12)


def test_contrast_shortens_t1_by_its_relaxivity():
    # 1/1000 ms + 4.78 / (mmol/l s) * 1 mmol/l = 5.78 / s
    assert enhanced(Tissue(1000, 100, 1, 1.0)).t1_ms == pytest.approx(1000 / 5.78)
    assert enhanced(Tissue(1000, 100, 1)).t1_ms == pytest.approx(1000)


@pytest.mark.parametrize(
    ("modality", "dark_to_bright"),
    [
        ("t1", (CSF, GM, WM)),
        ("t1ce", (CSF, GM, WM)),
        ("t2", (WM, GM, CSF)),
        ("flair", (CSF, WM, GM)),
    ],
)
def test_tissues_are_ordered_as_in_the_clinic(modality, dark_to_bright, healthy):
    levels = [healthy.median(modality, healthy.pure(t)) for t in dark_to_bright]
    assert levels[0] < 0.98 * levels[1] < 0.98 * 0.98 * levels[2]


def test_flair_keeps_little_of_csf(healthy):
    csf = healthy.median("flair", healthy.pure(CSF))
    assert csf < 0.35 * healthy.median("flair", healthy.pure(WM))


def test_oedema_is_bright_in_flair_and_t2_and_dark_in_t1(sick):
    oedema, white = sick.case.segmentation == ED, sick.pure(WM)
    for m in ("flair", "t2"):
        assert sick.median(m, oedema) > 1.3 * sick.median(m, white)
    assert sick.median("t1", oedema) < 0.95 * sick.median("t1", white)


def test_the_rim_enhances_and_the_core_does_not(sick):
    white = sick.pure(WM)

    def relative(modality: str, label: int) -> float:
        region = sick.case.segmentation == label
        return sick.median(modality, region) / sick.median(modality, white)

    assert relative("t1", ET) < 1
    assert relative("t1ce", ET) > 1.2
    assert relative("t1ce", NCR) < 1
    assert relative("t1ce", NCR) == pytest.approx(relative("t1", NCR), rel=0.3)


# Anatomy


def test_fractions_are_shares_of_a_voxel(sick):
    total = sick.fractions.sum(0)
    assert sick.fractions.min() >= 0
    assert total.max() < 1 + 1e-4
    inner = ndimage.binary_erosion(sick.case.images["t1"] > 0, iterations=2)
    np.testing.assert_allclose(total[inner], 1, atol=1e-4)


def test_the_cortex_is_folded(healthy):
    # On a smooth brain one depth holds one tissue; in gyri and sulci it holds all three.
    depth_mm = 2 * ndimage.distance_transform_edt(healthy.case.images["t1"] > 0)
    shell = (depth_mm > 6) & (depth_mm < 10)
    shell[:, :, :40] = False  # above 80 mm: hemispheres only
    shares = healthy.fractions[:, shell].mean(1)
    assert 0.02 < shares[CSF] < 0.35
    assert 0.25 < shares[GM] < 0.75
    assert 0.15 < shares[WM] < 0.65


def test_hemispheres_are_alike_but_not_equal(healthy):
    other = known(2, tumour=False, voxel_mm=2)
    grey, others = (ndimage.gaussian_filter(k.fractions[GM], 1) for k in (healthy, other))
    inner = ndimage.binary_erosion(healthy.case.images["t1"] > 0, iterations=3)
    inner &= inner[::-1]
    mirrored, another = (
        np.corrcoef(grey[inner], g[inner])[0, 1] for g in (grey[::-1], others[::-1])
    )
    assert another + 0.05 < mirrored < 0.9


def test_ventricles_hold_csf_on_both_sides_of_the_midline(healthy):
    # A frontal horn lies some 10 mm beside the midline and 33 mm before the head's origin.
    for side in (-1, 1):
        place = np.array([119 + side * 10, 131 - 30, 72 + 11]) // 2
        box = tuple(slice(c - 4, c + 5) for c in place)
        assert healthy.fractions[CSF][box].max() > 0.9


def test_oedema_prefers_white_matter(healthy, sick):
    label = sick.case.segmentation
    tumour = label > 0
    near = ndimage.binary_dilation(tumour, iterations=4) & ~tumour & (sick.fractions[CSF] < 0.5)
    white = healthy.fractions[WM]
    assert white[label == ED].mean() > 1.2 * white[near].mean()


def test_vessels_show_only_after_contrast(healthy):
    vessels = healthy.fractions[BLOOD] > 0.6
    white = healthy.pure(WM)
    after, before = (healthy.median(m, vessels) / healthy.median(m, white) for m in ("t1ce", "t1"))
    assert after > 1.5 * before
