"""Cohorts of one file per sequence: which files are a case, and what is wrong with one."""

import shutil
from pathlib import Path

import cohorts
import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg import prepare as command
from brainseg.config import PrepareConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers.base import Reading
from brainseg.data.readers.labels import Labels, map_labels, parse_classes
from brainseg.data.readers.nifti import find_cases, list_cases
from brainseg.data.readers.patterns import Pattern
from brainseg.data.store import Store


def touch(source: Path, *paths: str) -> Path:
    """Create empty files."""
    for path in paths:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    return source


def listed(source: Path, flair: str, mask: str) -> dict[str, tuple[str, str | None, str | None]]:
    """Return patient, FLAIR and mask of each case."""
    cases, _ = find_cases(source, {"FLAIR": flair}, mask)
    paths = [(case.name, case.patient, case.images.get("FLAIR"), case.mask) for case in cases]
    return {
        name: (
            patient,
            *[str(file.path.relative_to(source)) if file else None for file in (image, mask_)],
        )
        for name, patient, image, mask_ in paths
    }


@pytest.mark.parametrize(
    ("files", "flair", "mask", "expected"),
    [
        (
            ["A/x_flair.nii.gz", "A/x_seg.nii.gz"],
            "*_flair.nii.gz",
            "*_seg.nii.gz",
            {"A": ("A", "A/x_flair.nii.gz", "A/x_seg.nii.gz")},
        ),
        (
            ["A_flair.nii", "A_seg.nii", "B_flair.nii", "B_seg.nii"],
            "*_flair.nii",
            "*_seg.nii",
            {"A": ("A", "A_flair.nii", "A_seg.nii"), "B": ("B", "B_flair.nii", "B_seg.nii")},
        ),
        (
            ["img/A_f.nii", "lab/A.nii"],
            "img/*_f.nii",
            "lab/*.nii",
            {"A": ("A", "img/A_f.nii", "lab/A.nii")},
        ),
        (
            ["A/anat/f.nii", "A/anat/m.nii"],
            "anat/f.nii",
            "anat/m.nii",
            {"A": ("A", "A/anat/f.nii", "A/anat/m.nii")},
        ),
        (
            ["A/anat/f.nii", "A/anat/m.nii"],
            "*/anat/f.nii",
            "*/anat/m.nii",
            {"A": ("A", "A/anat/f.nii", "A/anat/m.nii")},
        ),
        (
            ["A/x.nii", "A/x_mask.nii"],
            "*.nii",
            "*_mask.nii",
            {"A": ("A", "A/x.nii", "A/x_mask.nii")},
        ),
        (
            ["A/1/f.nii", "A/1/m.nii", "A/2/f.nii", "A/2/m.nii"],
            "{patient}/{session}/f.nii",
            "{patient}/{session}/m.nii",
            {"A_1": ("A", "A/1/f.nii", "A/1/m.nii"), "A_2": ("A", "A/2/f.nii", "A/2/m.nii")},
        ),
        (
            ["T_20010101/f.nii", "T_20010101/m.nii", "T_20020202/f.nii", "T_20020202/m.nii"],
            "f.nii",
            "m.nii",
            {
                "T_20010101": ("T", "T_20010101/f.nii", "T_20010101/m.nii"),
                "T_20020202": ("T", "T_20020202/f.nii", "T_20020202/m.nii"),
            },
        ),
        (
            ["A/f.nii", "A/m.nii", "atlas_f.nii"],
            "*f.nii",
            "*m.nii",
            {"A": ("A", "A/f.nii", "A/m.nii")},
        ),
    ],
)
def test_the_patient_is_the_folder_or_what_the_star_matches(
    tmp_path: Path,
    files: list[str],
    flair: str,
    mask: str,
    expected: dict[str, tuple[str, str, str]],
) -> None:
    assert listed(touch(tmp_path, *files), flair, mask) == expected


def test_names_with_anything_in_them_are_taken_as_they_are(tmp_path: Path) -> None:
    names = ["Müller (1)", "王_2", "a=b, c", "#7 [x]", "100%"]
    source = touch(
        tmp_path,
        *[f"{name}/{part}.nii.gz" for name in names for part in ("f", "m")],
        ".hidden/f.nii.gz",
    )
    assert sorted(listed(source, "f.nii.gz", "m.nii.gz")) == sorted(names)


@given(st.from_regex(r"[A-Za-z0-9 .()+-]{1,12}", fullmatch=True), st.integers(0, 99999))
def test_a_pattern_finds_the_fields_that_a_name_was_made_of(patient: str, number: int) -> None:
    pattern = Pattern("images", "img/{patient}/{patient}_{slice}.png")
    assert pattern.match(f"img/{patient}/{patient}_{number:03d}.png") == {
        "patient": patient,
        "slice": f"{number:03d}",
    }
    assert pattern.match(f"img/{patient}/x{patient}_{number}.png") is None
    assert pattern.match(f"img/{patient}/{patient}_{number}xpng") is None


@pytest.mark.parametrize(
    ("flair", "mask", "message"),
    [
        ("*_FLAIR.nii.gz", "*_seg.nii.gz", "sequences.FLAIR=*_FLAIR.nii.gz: matches no file below"),
        ("*_flair.nii.gz", "*_mask.nii.gz", "mask=*_mask.nii.gz: matches no file below"),
        (
            "{name}_flair.nii.gz",
            "*_seg.nii.gz",
            "{name} is no field; known: patient, session, slice",
        ),
        (
            "*.nii.gz",
            "*.nii.gz",
            "matches P1/scan_flair.nii.gz, as mask does; give patterns that tell the files apart",
        ),
        ("/data/flair.nii.gz", "*_seg.nii.gz", "must be a pattern relative to the source"),
        ("{session}/flair.nii.gz", "*_seg.nii.gz", "names no {patient}; put {patient} where"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_with_what_is_there(
    tmp_path: Path, flair: str, mask: str, message: str
) -> None:
    source = touch(tmp_path, "P1/scan_flair.nii.gz", "P1/scan_seg.nii.gz")
    with pytest.raises(RequestError) as refused:
        find_cases(source, {"FLAIR": flair}, mask)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_deeper_folders_need_a_pattern_that_says_who_is_the_patient(tmp_path: Path) -> None:
    source = touch(tmp_path, "A/2001/f.nii", "A/2001/m.nii", "A/2002/f.nii", "A/2002/m.nii")
    with pytest.raises(RequestError, match=r"as '\{patient\}/\{session\}/flair.nii.gz'"):
        find_cases(source, {"FLAIR": "f.nii"}, "m.nii")


def test_cases_without_masks_for_prediction(tmp_path: Path) -> None:
    source = touch(tmp_path, "A/flair.nii.gz", "A/t1.nii.gz", "B/flair.nii.gz")
    cases = list_cases(source, {"T1": "t1.nii.gz", "FLAIR": "flair.nii.gz"})
    assert [(case.name, list(case.images), case.mask, case.faults) for case in cases] == [
        ("A", ["T1", "FLAIR"], None, ()),
        ("B", ["FLAIR"], None, ()),
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six patients with FLAIR, T1 and masks of one class, in folders."""
    for index, images, masks in cohorts.patients():
        for channel, name in ((0, "t1"), (3, "flair")):
            cohorts.write_image(
                tmp_path / "source" / f"P{index}" / f"{name}.nii.gz", images[:, channel], index
            )
        cohorts.write_image(
            tmp_path / "source" / f"P{index}" / "mask.nii.gz", (masks > 0).astype(np.uint8), index
        )
    return tmp_path / "source"


READING = Reading(
    "nifti", {"T1": "t1.nii.gz", "FLAIR": "flair.nii.gz"}, mask="mask.nii.gz", size=(32, 32)
)


def faults_of(source: Path, reading: Reading = READING) -> list[str]:
    """Return the faults of a cohort."""
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, source.parent / "own.h5", workers=1, reading=reading)
    assert not (source.parent / "own.h5").exists()
    return refused.value.faults


def test_a_missing_sequence_is_filled_with_flair_and_reported(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "P3" / "t1.nii.gz").unlink()
    config = PrepareConfig(
        source=str(source), output=str(source.parent / "own.h5"), workers=1, size=32
    )
    assert command.run(config) == 0
    printed = capsys.readouterr().out
    assert "no T1 (FLAIR stands in for it) in 1 of 6 volumes: P3" in printed
    assert "reader: nifti; channels: FLAIR, T1; classes: background, tumour" in printed
    with Store(source.parent / "own.h5") as store:
        images = store.images(*store.rows_of("P3"))
        assert np.array_equal(images[:, 0], images[:, 1])


def rewrite(path: Path, change: object) -> None:
    """Replace the voxels of a NIfTI file, with nibabel; `change` maps the old ones to the new ones."""
    image = nibabel.load(path)
    voxels = change(np.asarray(image.dataobj).copy())  # type: ignore[operator]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


def with_nan(voxels: np.ndarray) -> np.ndarray:
    """Return voxels of which three are NaN."""
    voxels = voxels.astype(np.float32)
    voxels.flat[100:103] = np.nan
    return voxels


def test_each_fault_names_file_value_and_remedy(source: Path) -> None:
    (source / "P0" / "mask.nii.gz").unlink()
    (source / "P1" / "flair.nii.gz").unlink()
    rewrite(source / "P2" / "flair.nii.gz", with_nan)
    content = (source / "P3" / "t1.nii.gz").read_bytes()
    (source / "P3" / "t1.nii.gz").write_bytes(content[: len(content) // 2])
    for name in ("flair", "t1"):
        rewrite(source / "P4" / f"{name}.nii.gz", np.zeros_like)
    rewrite(
        source / "P5" / "mask.nii.gz",
        lambda voxels: voxels * 3 + (np.arange(voxels.size).reshape(voxels.shape) == 0),
    )
    faults = faults_of(source)
    tumour = np.count_nonzero(cohorts.make_patient(5)[1])
    assert len(faults) == 6
    for fault, parts in zip(
        faults,
        [
            ["P0: no file matches mask=mask.nii.gz"],
            ["P1: no FLAIR; only FLAIR can stand in for another sequence"],
            ["P2/flair.nii.gz: ", "3"],
            ["P3/t1.nii.gz: truncated"],
            ["P4: slices ", "hold a mask and no image"],
            [
                f"P5/mask.nii.gz: mask values 1 (1 pixels), 3 ({tumour} pixels): without classes, a mask holds 0 and 1",
                "say which are tumour, as classes.tumour=[1,3]",
            ],
        ],
        strict=True,
    ):
        assert all(part in fault for part in parts), fault


def test_several_files_for_one_sequence_are_a_fault_that_names_them(source: Path) -> None:
    shutil.copy(source / "P2" / "flair.nii.gz", source / "P2" / "old_flair.nii.gz")
    reading = Reading(**{**vars(READING), "sequences": {"FLAIR": "*flair.nii.gz"}})
    assert faults_of(source, reading) == [
        "P2: 2 files match sequences.FLAIR=*flair.nii.gz: P2/flair.nii.gz, P2/old_flair.nii.gz; name one of them"
    ]


def test_one_faulty_session_leaves_the_whole_patient_out(source: Path) -> None:
    for index in range(6):
        patient = "S" if index < 2 else f"P{index}"
        shutil.copytree(source / f"P{index}", source.parent / "sessions" / patient / f"P{index}")
    source = source.parent / "sessions"
    (source / "S" / "P1" / "mask.nii.gz").unlink()
    reading = Reading(
        "nifti",
        {"FLAIR": "{patient}/{session}/flair.nii.gz"},
        mask="{patient}/{session}/mask.nii.gz",
        size=(32, 32),
    )
    summary = convert(source, source.parent / "own.h5", "skip_patient", 1, reading=reading)
    assert summary.left_out == ["S"] and [volume.patient for volume in summary.volumes] == [
        "P2",
        "P3",
        "P4",
        "P5",
    ]


@given(
    st.lists(st.sampled_from([0, 1, 2, 4, 300, 10**7]), min_size=1, max_size=30),
    st.sampled_from(["i2", "f4", "i8", "u4"]),
)
def test_labels_are_mapped_by_value(values: list[int], kind: str) -> None:
    if kind == "i2":
        values = [value % 1000 for value in values]
    mask = np.array(values, kind).reshape(1, 1, -1)
    labels = parse_classes({"oedema": 2, "core": [1, 4, 300], "background": [10**7]})
    expected = [{2: 1, 1: 2, 4: 2, 300: 2}.get(value, 0) for value in values]
    assert map_labels(mask, labels).ravel().tolist() == expected
    if set(values) <= {0, 1}:
        assert map_labels(mask, Labels()).ravel().tolist() == values


def test_a_mask_blurred_by_interpolation_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"2 mask values are no whole numbers, such as 0.25, 0.5; interpolation has blurred",
    ):
        map_labels(np.array([0, 0.25, 0.5, 1]), Labels())


@pytest.mark.parametrize("header_kind", ["i2", "u1", "i4"])
@pytest.mark.parametrize("value", [1, 2, 3, 255])
def test_a_float_mask_that_nibabel_scaled_into_integers_is_read_as_written(
    tmp_path: Path, header_kind: str, value: int
) -> None:
    drawn = np.zeros((8, 8, 4), np.int64)
    drawn[2:5, 3:6, 1:3] = value
    header = nibabel.Nifti1Header()
    header.set_data_dtype(header_kind)
    # nibabel stores floats in the header's integer type by a slope, and the slope is rounded.
    nibabel.save(
        nibabel.Nifti1Image(drawn.astype(np.float64), np.eye(4), header), tmp_path / "m.nii"
    )
    for _ in range(3):
        image = nibabel.load(tmp_path / "m.nii")
        again = nibabel.Nifti1Image(image.get_fdata(), image.affine, image.header)
        nibabel.save(again, tmp_path / "again.nii")
        (tmp_path / "again.nii").replace(tmp_path / "m.nii")
    stored = nibabel.load(tmp_path / "m.nii").get_fdata()
    mapped = map_labels(stored, parse_classes({"tumour": value}))
    assert np.array_equal(mapped, drawn > 0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"tumour": "one"}, "classes.tumour=one: must be the value of this class"),
        ({"tumour": []}, "classes.tumour=[]: must be the value"),
        ({"tumour": [1, True]}, "must be the value"),
        ({"a": 1, "b": [2, 1]}, "classes.b=[2, 1]: value 1 is already a"),
        ({"a/b": 1}, "classes.a/b=1: a name has letters"),
        ({"background": 3}, "must name at least one class besides background"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_classes(classes)
    assert message in str(refused.value)
