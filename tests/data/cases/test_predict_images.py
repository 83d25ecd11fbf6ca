"""predict on NIfTI and DICOM: a mask comes back on the source's grid, at the place in the patient where the block was."""

import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import (
    BLOCK,
    SHAPE,
    SPACING,
    THRESHOLD,
    mask_in_place,
    scan,
    threshold_weights,
    truth,
    write_dicom,
    write_nifti,
)
from test_predict import call

from brainseg.core.errors import DataError, RequestError
from brainseg.data.cases.find import find_cases
from brainseg.data.volume import CHANNELS

CODES = [
    "".join(code)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for code in itertools.product(*axes)
]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return threshold_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("axes", "name"), [("LPS", "a.nii.gz"), ("RAS", "a.nii"), ("ASR", "a.nii.gz"), ("IRP", "a.nii")]
)
def test_a_nifti_mask_lies_where_the_block_was(
    axes: str, name: str, weights: Path, tmp_path: Path
) -> None:
    source = write_nifti(tmp_path / name, scan(), axes)
    call(
        f"checkpoint={weights}",
        f"input={source}",
        f"output={tmp_path / 'out'}",
        "probabilities=true",
        *THRESHOLD,
    )
    mask, original = nibabel.load(tmp_path / "out" / "a" / "a_mask.nii.gz"), nibabel.load(source)
    assert mask.shape == original.shape and np.allclose(mask.affine, original.affine, atol=1e-4)
    assert nibabel.aff2axcodes(mask.affine) == tuple(axes) and mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask_in_place(tmp_path / "out" / "a" / "a_mask.nii.gz"), truth())
    probability = nibabel.load(tmp_path / "out" / "a" / "a_probability.nii.gz").get_fdata()
    assert np.array_equal(probability >= 0.5, np.asarray(mask.dataobj) > 0)
    (row,) = pd.read_csv(tmp_path / "out" / "volumes.csv").itertuples()
    assert row.tumour_voxels == truth().sum() and row.tumour_ml == pytest.approx(
        truth().sum() * np.prod(SPACING) / 1000, abs=1e-5
    )
    assert row.slices == SHAPE[2], "axial ones, however it is stored"


@settings(
    max_examples=48, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(axes=st.sampled_from(CODES), corner=st.tuples(*(st.integers(0, side - 2) for side in SHAPE)))
def test_a_voxel_comes_back_from_every_orientation(
    axes: str, corner: tuple[int, int, int], tmp_path: Path
) -> None:
    volume = np.zeros(SHAPE, np.uint8)
    volume[corner] = 200
    volume[corner[0] + 1, corner[1], corner[2]] = 100
    (case,) = find_cases(str(write_nifti(tmp_path / "a.nii", volume, axes)), {}, CHANNELS)
    images = case.read().images
    assert np.array_equal(images[:, 1], volume.transpose(2, 1, 0)), (
        "slices from bottom to top, rows to the back, columns to the left"
    )
    case.write(tmp_path / "out", (images[:, 1] == 200).astype(np.uint8), None, False)
    assert np.array_equal(np.argwhere(mask_in_place(tmp_path / "out" / "a_mask.nii.gz")), [corner])


def test_a_dicom_folder_with_a_series_a_sequence(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = np.random.default_rng(1).integers(0, 30, SHAPE)
    for name, volume in (("pre-contrast", plain), ("FLAIR", scan()), ("post-contrast", plain)):
        write_dicom(tmp_path / "patient" / name, volume, "T1 or T2")
    call(
        f"checkpoint={weights}",
        f"input={tmp_path / 'patient'}",
        f"output={tmp_path / 'out'}",
        *THRESHOLD,
    )
    assert "note: the mask is a NIfTI file on the same grid" in capsys.readouterr().out
    path = tmp_path / "out" / "patient" / "patient_mask.nii.gz"
    assert np.array_equal(mask_in_place(path), truth())
    assert np.allclose(
        nibabel.load(path).affine, [[-1, 0, 0, 30], [0, -1.5, 0, 40], [0, 0, 4, -20], [0, 0, 0, 1]]
    )


def test_series_in_one_folder_are_told_apart_by_their_descriptions(
    weights: Path, tmp_path: Path
) -> None:
    for number, (text, volume) in enumerate(
        (("AX T2 dark fluid", scan()), ("AX T1", np.ones(SHAPE)), ("localizer", np.ones((4, 4, 3))))
    ):
        for file in write_dicom(tmp_path / f"{number}", volume, text).iterdir():
            (tmp_path / "patient").mkdir(exist_ok=True)
            file.rename(tmp_path / "patient" / f"{number}_{file.name}")
    request = [
        f"checkpoint={weights}",
        f"input={tmp_path / 'patient'}",
        f"output={tmp_path / 'out'}",
        *THRESHOLD,
    ]
    call(*request, "sequences.FLAIR='dark fluid'", "sequences.pre-contrast='AX T1'")
    assert np.array_equal(
        mask_in_place(tmp_path / "out" / "patient" / "patient_mask.nii.gz"), truth()
    )
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "no post-contrast (FLAIR stands in for it, as in the public set)" in notes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_all_bit_depths_find_the_block(dtype: type, tmp_path: Path) -> None:
    volume = np.where(truth(), 200, scan()).astype(dtype)
    (case,) = find_cases(str(write_nifti(tmp_path / "a.nii.gz", volume)), {}, CHANNELS)
    read = case.read()
    assert (
        read.images.dtype == np.uint8
        and read.images.shape == (9, 3, 16, 20)
        and read.spacing == pytest.approx((4.0, 1.5, 1.0))
    )
    whole_numbers = np.dtype(dtype).kind in "iu"
    assert (read.images == volume.transpose(2, 1, 0)[:, None]).all() or not whole_numbers, (
        "kept, where eight bits hold them"
    )
    assert (read.images[:, 1].transpose(2, 1, 0)[BLOCK] == (200 if whole_numbers else 255)).all()


def test_a_folder_of_nifti_files_goes_by_their_names(tmp_path: Path) -> None:
    for name, value in (("sub_pre-contrast", 10), ("sub_FLAIR", 20), ("sub_post_contrast", 30)):
        write_nifti(tmp_path / "sub" / f"{name}.nii.gz", np.full(SHAPE, value, np.uint8))
    (case,) = find_cases(str(tmp_path / "sub"), {}, CHANNELS)
    assert case.read().images[0, :, 0, 0].tolist() == [10, 20, 30] and case.name == "sub"
    (case,) = find_cases(str(tmp_path / "sub"), {"FLAIR": "sub_pre-contrast.nii.gz"}, CHANNELS)
    assert case.read().images[0, :, 0, 0].tolist() == [10, 10, 10]
    write_nifti(tmp_path / "sub" / "other.nii", np.zeros(SHAPE, np.uint8))
    with pytest.raises(
        RequestError,
        match=r"4 series, and it is not clear which is pre-contrast.*sequences.pre-contrast=NAME",
    ):
        find_cases(str(tmp_path / "sub"), {}, CHANNELS)


def test_a_network_of_one_sequence_takes_that_alone(tmp_path: Path) -> None:
    for name, value in (("FLAIR", 20), ("post-contrast", 30)):
        write_nifti(tmp_path / "sub" / f"{name}.nii.gz", np.full(SHAPE, value, np.uint8))
    (case,) = find_cases(
        str(tmp_path / "sub"), {"post-contrast": "post-contrast.nii.gz"}, ["post-contrast"]
    )
    assert case.read().images[0, :, 0, 0].tolist() == [30]
    with pytest.raises(RequestError, match="knows no such sequence"):
        find_cases(str(tmp_path / "sub"), {"FLAIR": "FLAIR.nii.gz"}, ["post-contrast"])


@pytest.mark.parametrize(
    ("tags", "rule"),
    [
        ({"Rows": 30000, "Columns": 30000}, "at most 268,435,456 are read"),
        ({"Rows": 3000, "Columns": 3000}, "truncated: it holds 640 of the 18,000,000 bytes"),
        (
            {"ImagePositionPatient": [0, 0, 0]},
            "lie at one place, and nothing in their headers tells two volumes apart",
        ),
    ],
)
def test_dicom_headers_that_do_not_hold_are_refused(tags: dict, rule: str, tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "patient", scan(), **tags)
    with pytest.raises(RequestError, match=rule):
        find_cases(str(folder), {}, CHANNELS)


def test_a_missing_slice_and_a_slice_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "patient", scan())
    victim = folder / "002.dcm"  # the fifth of nine
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises(
        RequestError,
        match=r"8\.00 mm apart between .* A slice is missing, or they are unevenly spaced",
    ):
        find_cases(str(folder), {}, CHANNELS)
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(RequestError, match=r"002\.dcm is damaged or no DICOM file\. Copy it again"):
        find_cases(str(folder), {}, CHANNELS)


def test_a_file_that_changes_after_it_was_judged_is_a_data_error(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", scan())
    (case,) = find_cases(str(path), {}, CHANNELS)
    assert case.notes == []
    write_nifti(path, scan()[:10])
    with pytest.raises(DataError, match="changed since its header was read"):
        case.read()
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a NIfTI file"):
        case.read()


@pytest.mark.parametrize(
    ("change", "millilitres"),
    [
        ({"pixdim": [1, 2, 2.5, 0, 1, 1, 1, 1]}, None),
        ({"xyzt_units": 1}, None),
        ({}, 0.025),
        ({"shear": 1.5}, 0.025),
    ],
    ids=["no thickness", "metres", "straight", "sheared"],
)
def test_millilitres_are_those_of_the_header_or_none(
    change: dict, millilitres: float | None, weights: Path, tmp_path: Path
) -> None:
    """A sheared voxel has the volume of a straight one, smaller than the product of its sides."""
    matrix = np.diag([2.0, 2.5, 5.0, 1.0])
    matrix[0, 2] = change.pop("shear", 0)
    image = nibabel.Nifti1Image(scan(), None)
    image.header.set_sform(matrix, 1 if matrix[0, 2] else 0)
    image.header.set_qform(np.diag([2.0, 2.5, 5.0, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for field, value in change.items():
        header[field] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + content[348:])
    call(
        f"checkpoint={weights}",
        f"input={tmp_path / 'a.nii'}",
        f"output={tmp_path / 'out'}",
        "overlays=false",
        "viewer=0",
        *THRESHOLD,
    )
    (row,) = pd.read_csv(tmp_path / "out" / "volumes.csv").itertuples()
    assert row.tumour_voxels == truth().sum()
    assert (
        np.isnan(row.tumour_ml)
        if millilitres is None
        else row.tumour_ml == pytest.approx(truth().sum() * millilitres, rel=1e-4)
    )
    notes = " ".join(json.loads((tmp_path / "out" / "summary.json").read_text())["notes"])
    assert ("no volume in millilitres" in notes) is (millilitres is None) and (
        "from perpendicular" in notes
    ) is bool(matrix[0, 2])
