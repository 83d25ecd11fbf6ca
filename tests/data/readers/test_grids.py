"""Position in space: 48 orders of the axes give the same slices, other grids are faults or are resampled."""

import itertools
from pathlib import Path

import cohorts
import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers.base import Reading
from brainseg.data.store import Store

AXES = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]
FLAIR = Reading("nifti", {"FLAIR": "flair.nii.gz"}, mask="mask.nii.gz")


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """Write a NIfTI file with nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    nibabel.save(image, path)
    return image


def read(source: Path, reading: Reading = FLAIR) -> tuple[np.ndarray, np.ndarray, Store]:
    """Prepare a cohort and return its images (N, C, H, W), masks (N, H, W) and the open store."""
    # The 48 orders of one scan are duplicates, so they are kept together.
    convert(
        source, source.parent / "own.h5", workers=1, reading=reading, on_duplicate="keep_together"
    )
    store = Store(source.parent / "own.h5")
    return store.images(0, store.shape[0]), store.masks(0, store.shape[0])[:, 0], store


def test_48_orders_of_the_axes_give_the_same_slices_and_spacing(tmp_path: Path) -> None:
    assert len(AXES) == 48
    images, masks = cohorts.make_patient(0)
    for axes in AXES:
        for name, slices in {"flair": images[:, 3], "mask": masks > 0}.items():
            (tmp_path / "source" / axes).mkdir(parents=True, exist_ok=True)
            image = cohorts.as_nifti(slices.astype(np.uint8), 0, axes)
            assert "".join(nibabel.aff2axcodes(image.affine)) == axes
            nibabel.save(image, tmp_path / "source" / axes / f"{name}.nii.gz")
    stored, truth, store = read(tmp_path / "source")
    assert sorted(AXES) == store.volumes
    assert np.array_equal(
        stored.reshape(48, *images[:, 3].shape), np.broadcast_to(images[:, 3], (48, 4, 32, 32))
    )
    assert np.array_equal(truth.reshape(48, 4, 32, 32), np.broadcast_to(masks > 0, (48, 4, 32, 32)))
    assert store.spacing == pytest.approx(np.broadcast_to(cohorts.SPACING, (48, 3)), rel=1e-5)


def test_a_mask_in_another_order_of_axes_lies_on_the_same_grid(tmp_path: Path) -> None:
    images, masks = cohorts.make_patient(0)
    source = tmp_path / "source"
    (source / "P0").mkdir(parents=True)
    nibabel.save(cohorts.as_nifti(images[:, 3], 0, "LPS"), source / "P0" / "flair.nii.gz")
    nibabel.save(cohorts.as_nifti(masks, 0, "RAS"), source / "P0" / "mask.nii.gz")
    _, stored, store = read(source, Reading(**{**vars(FLAIR), "classes": {"oedema": 1, "core": 2}}))
    assert np.array_equal(stored, masks) and "resampled" not in store.preparation


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """A patient whose T1 is finer and lies obliquely, and whose mask is drawn on T1."""
    random = np.random.default_rng(1)
    source = tmp_path / "source"
    smooth = random.normal(100, 20, (6, 6, 4)).repeat(4, 0).repeat(4, 1).repeat(2, 2)
    save(source / "P0" / "flair.nii.gz", smooth.astype(np.float32), np.diag([-2.0, -2.0, 3.0, 1.0]))
    angle = np.deg2rad(7)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.array([[1.5, 0, 0, -50], [0, 1.5, 0, -44], [0, 0, 2, 1], [0, 0, 0, 1]])
    fine = random.normal(500, 90, (36, 34, 12)).astype(np.float32)
    save(source / "P0" / "t1.nii.gz", fine, affine)
    drawn = np.zeros(fine.shape, np.uint8)
    drawn[12:24, 10:20, 3:8] = 1
    save(source / "P0" / "mask.nii.gz", drawn, affine)
    return source


def test_other_grids_are_resampled_onto_the_sequence_that_is_named(shifted: Path) -> None:
    sequences = {"T1": "t1.nii.gz", "FLAIR": "flair.nii.gz"}
    with pytest.raises(FaultyCohortError) as refused:
        read(shifted, Reading("nifti", sequences, mask="mask.nii.gz"))
    sizes = "12 x 34 x 36 voxels instead of 8 x 24 x 24, as axial slices"
    assert (
        f"P0/t1.nii.gz: its grid is not that of flair.nii.gz: {sizes}; onto=FLAIR resamples it"
        in str(refused.value)
    )
    images, masks, store = read(
        shifted, Reading("nifti", sequences, mask="mask.nii.gz", onto="FLAIR")
    )
    flair, t1, mask = (
        nibabel.load(shifted / "P0" / f"{name}.nii.gz") for name in ("flair", "t1", "mask")
    )
    # nibabel resamples with SciPy. The array of FLAIR has the axes L, P, S, so axial slices are its transpose.
    wanted = resample_from_to(t1, flair, order=1).get_fdata().transpose(2, 1, 0)
    inside = resample_from_to(
        nibabel.Nifti1Image(np.ones(t1.shape, np.float32), t1.affine), flair, order=1
    ).get_fdata()
    low, high = np.percentile(wanted, (0.5, 99.5))
    stretched = np.rint(255 * ((wanted - low) / (high - low)).clip(0, 1))
    certain = inside.transpose(2, 1, 0) > 0.999
    assert certain.mean() > 0.3 and abs(images[:, 0].astype(float) - stretched)[certain].max() <= 4
    nearest = resample_from_to(mask, flair, order=0).get_fdata().transpose(2, 1, 0)
    assert np.count_nonzero(nearest) > 100 and np.count_nonzero(nearest != masks) <= 2
    for note in (
        "T1 is resampled onto the grid of FLAIR, by linear",
        "the mask is resampled onto the grid of FLAIR, by nearest",
    ):
        assert note in store.preparation


def test_a_mask_30_mm_off_is_a_fault_and_one_outside_of_the_image_is_one_even_if_resampled(
    tmp_path: Path,
) -> None:
    images, masks = cohorts.make_patient(0)
    source = tmp_path / "source"
    for name, shift in {"right": 0.0, "off": 30.0, "far": 500.0}.items():
        image, mask = (
            cohorts.as_nifti(array, 0, "LPS")
            for array in (images[:, 3], (masks > 0).astype(np.uint8))
        )
        moved = mask.affine.copy()
        moved[2, 3] += shift
        save(source / name / "flair.nii.gz", np.asarray(image.dataobj), image.affine)
        save(source / name / "mask.nii.gz", np.asarray(mask.dataobj), moved)
    with pytest.raises(FaultyCohortError) as refused:
        read(source)
    assert (
        "off/mask.nii.gz: its grid is not that of flair.nii.gz: a corner lies 30 mm away; onto=FLAIR"
        in str(refused.value)
    )
    assert "far/mask.nii.gz" in str(refused.value) and len(refused.value.faults) == 2
    onto = Reading(**{**vars(FLAIR), "onto": "FLAIR"})
    with pytest.raises(
        FaultyCohortError, match=r"far/mask\.nii\.gz: the whole mask lies outside of FLAIR"
    ):
        read(source, onto)


def test_part_of_a_mask_outside_of_the_image_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save(
        source / "P0" / "flair.nii.gz",
        np.random.default_rng(0).random((16, 16, 4), np.float32),
        np.diag([-1.0, -1, 2, 1]),
    )
    drawn = np.zeros((16, 16, 4), np.uint8)
    drawn[2:4, 5:8, 1:4] = 1
    save(
        source / "P0" / "mask.nii.gz",
        drawn,
        np.array([[-1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 2, 4], [0, 0, 0, 1]]),
    )
    _, masks, store = read(source, Reading(**{**vars(FLAIR), "onto": "FLAIR"}))
    assert masks.sum(axis=(1, 2)).tolist() == [
        0,
        0,
        0,
        6,
    ]  # slice 1 of the mask lies at slice 3 of FLAIR
    assert "12 of 18 voxels of the mask lie outside of FLAIR and are lost" in store.preparation
