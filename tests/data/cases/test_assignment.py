"""Which file becomes which sequence: names that contradict, numbers, spaces and other alphabets."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scans import SHAPE, THRESHOLD, scan, threshold_weights, write_dicom, write_nifti
from test_predict import call

from brainseg.config import PredictConfig
from brainseg.core.errors import RequestError
from brainseg.data.cases.assignment import contradictions
from brainseg.data.cases.find import find_cases
from brainseg.data.volume import CHANNELS

OTHER = "sub-01_T1w T1.nii t1ce.nii.gz T2 t2w.nii T2star MPRAGE post_contrast P1_pre CE gad T1+C CT head_CT seg "
OTHER += "FLAIR_seg.nii.gz flair_mask.nii brainmask FLAIR-label T1_FLAIR flair_gad DWI adc.nii PET labels gt SWI"


@pytest.mark.parametrize("name", OTHER.split())
def test_a_name_that_contradicts_is_refused(name: str) -> None:
    assert contradictions([name], "FLAIR", CHANNELS)


@pytest.mark.parametrize(
    "name",
    [
        "FLAIR.nii.gz",
        "T2_FLAIR",
        "AX T2 dark fluid",
        "t2_tirm_tra_dark-fluid",
        "rFLAIR.nii",
        "scan",
        "P1",
        "sub-01_space-T1w_FLAIR.nii.gz",
        "FLAIR_to_T1",
        "3D T2 FLAIR sag",
        "Müller.nii.gz",
        "脑部扫描",
        "A1234",
        "contact.nii",
        "direct",
        "October",
        "masked_ball_FLAIR",
        "T2flair",
        "flair_pre.nii",
        "02_enhanced_fine.dcm",
        "postman",
        "segment",
        "ct1",
        "octree",
        "1.2.840.113619.2.5",
        "FLAIR (1).nii.gz",
    ],
)
def test_a_name_that_fits_or_says_nothing_is_taken(name: str) -> None:
    assert contradictions([name], "FLAIR", CHANNELS) == []


@pytest.mark.parametrize(
    ("name", "channel", "fits"),
    [
        ("T1_post-contrast", "post-contrast", True),
        ("t1_gad", "post-contrast", True),
        ("T1 CE", "post-contrast", True),
        ("FLAIR", "post-contrast", False),
        ("post-contrast_seg", "post-contrast", False),
        ("T2", "post-contrast", False),
        ("T1w", "pre-contrast", True),
        ("T1_post-contrast", "pre-contrast", False),
        ("T1", "T1", True),
        ("T1ce", "T1", False),
        ("T2", "T2", True),
        ("T2_FLAIR", "T2", False),
        ("T1", "A", True),
        ("B", "A", False),
        ("A_seg", "A", False),
        ("CT", "CT", True),
    ],
)
def test_each_sequence_has_its_own_words(name: str, channel: str, fits: bool) -> None:
    channels = (
        CHANNELS if channel in CHANNELS else ["A", "B"] if channel == "A" else ["T1", "T2", "CT"]
    )
    assert (contradictions([name], channel, channels) == []) is fits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    threshold_weights(tmp_path / "w.pt")
    return tmp_path


def test_the_assignment_is_printed_and_an_explicit_one_overrules_a_name(
    folder: Path, capfd
) -> None:
    write_nifti(folder / "sub-01_T1w.nii.gz", scan())
    request = ("checkpoint=w.pt", *THRESHOLD, "overlays=false", "viewer=0")
    call(*request, "input=sub-01_T1w.nii.gz", "output=o1", code=2)
    error = capfd.readouterr().err
    assert "would be taken for FLAIR, and is named after T1w; if it is FLAIR, say so with" in error
    assert "sequences.FLAIR=sub-01_T1w.nii.gz" in error and not (folder / "o1").exists()
    line = "sequences:     pre-contrast: missing, FLAIR: sub-01_T1w.nii.gz, post-contrast: missing"
    call(*request, "input=sub-01_T1w.nii.gz", "sequences.FLAIR=sub-01_T1w.nii.gz", "output=o2")
    assert line in capfd.readouterr().out.splitlines()
    call(*request, "input=[null,sub-01_T1w.nii.gz,null]", "output=o3")
    assert line in capfd.readouterr().out.splitlines()
    write_nifti(folder / "brain.nii.gz", scan())
    call(*request, "input=brain.nii.gz", "output=o4")
    printed = capfd.readouterr().out
    assert (
        "FLAIR: brain.nii.gz" in printed and "For research only, not for clinical use." in printed
    )


def test_a_description_that_contradicts_is_refused(folder: Path) -> None:
    write_dicom(folder / "series", scan(), "AX T1 POST")
    with pytest.raises(
        RequestError, match="would be taken for FLAIR, and is named after T1 and POST"
    ):
        find_cases("series", {}, CHANNELS)
    (case,) = find_cases("series", {"FLAIR": "AX T1 POST"}, CHANNELS)
    assert case.assignment == {"FLAIR": "series (AX T1 POST, 9 files)"}


@pytest.mark.parametrize(
    "name",
    [
        "my scan.nii.gz",
        "a#b.nii",
        "a=b.nii.gz",
        "FLAIR (1).nii.gz",
        "Müller.nii.gz",
        "Mu\u0308ller.nii.gz",
        "脑.nii.gz",
        "it's.nii",
        "a,b.nii.gz",
        "[x].nii.gz",
        "SCAN.NII.GZ",
        "x.nii.bz2",
        "a.b.c.nii.gz",
        "ä ö.hdr",
    ],
)
def test_any_name_of_a_file_works(name: str, folder: Path) -> None:
    (folder / "in").mkdir()
    plain = nibabel.load(write_nifti(folder / "plain.nii", scan()))
    kind = nibabel.Nifti1Pair if name.endswith("hdr") else nibabel.Nifti1Image
    lower = folder / "in" / name.lower()
    nibabel.save(kind(np.asarray(plain.dataobj), plain.affine), lower)
    lower.rename(folder / "in" / name)
    for cases in (
        find_cases(f"in/{name}", {}, CHANNELS),
        find_cases("in", {"FLAIR": name}, CHANNELS),
        find_cases([None, f"in/{name}", None], {}, CHANNELS),
    ):
        assert np.array_equal(cases[0].read().images[:, 1] > 100, scan().transpose(2, 1, 0) > 100)
        assert cases[0].assignment == {"FLAIR": f"in/{name}"}


@pytest.mark.parametrize("value", [2, "2"])
def test_a_folder_named_by_a_number_can_be_named(value: object, folder: Path) -> None:
    for number in (2, 12, 20):
        write_dicom(folder / "patient" / str(number), scan(), f"series {number}")
    config = PredictConfig(checkpoint="w.pt", input="patient", sequences={"FLAIR": value})
    (case,) = find_cases("patient", config.sequences, CHANNELS)
    assert case.assignment["FLAIR"].startswith("patient/2 ")
    # A number is a whole name: the 1 in 12 means nothing.
    with pytest.raises(RequestError, match="fits 0 of the series"):
        find_cases("patient", {"FLAIR": "1"}, CHANNELS)


def test_names_are_compared_whatever_their_case_and_their_accents(folder: Path) -> None:
    write_nifti(folder / "in" / "Mu\u0308ller.nii.gz", scan())
    write_nifti(folder / "in" / "other.nii.gz", scan())
    (case,) = find_cases("in", {"FLAIR": "m\u00fcller"}, CHANNELS)
    assert case.assignment["FLAIR"].endswith("ller.nii.gz")


def test_one_file_under_two_names_is_refused(folder: Path) -> None:
    write_nifti(folder / "a.nii", scan())
    (folder / "b.nii").symlink_to("a.nii")
    with pytest.raises(RequestError, match=r"pre-contrast and FLAIR are the same file"):
        find_cases(["a.nii", "b.nii", None], {}, CHANNELS)
    assert find_cases("b.nii", {}, CHANNELS)[0].read().images.shape == (9, 3, 16, 20)


def test_a_message_names_no_path_twice(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "scan.nii").write_bytes(b"no image")
    (folder / "x.nii.gz").mkdir()
    for source in (
        "sub/scan.nii",
        str(folder / "sub" / "scan.nii"),
        "sub",
        [None, "sub/scan.nii", None],
        "x.nii.gz",
    ):
        with pytest.raises(RequestError) as raised:
            find_cases(source, {}, CHANNELS)
        assert str(raised.value).count("scan.nii") <= 1 and "\n" not in str(raised.value)
        assert "ITK" not in str(raised.value) and "nibabel" not in str(raised.value)


def test_a_folder_with_a_label_beside_its_sequences_is_not_clear(folder: Path) -> None:
    for name in ("pre-contrast", "FLAIR", "post-contrast"):
        write_nifti(folder / "in" / f"{name}.nii.gz", np.ones(SHAPE, np.uint8))
    assert len(find_cases("in", {}, CHANNELS)[0].assignment) == 3
    (folder / "in" / "FLAIR.nii.gz").rename(folder / "in" / "FLAIR_mask.nii.gz")
    with pytest.raises(RequestError, match="would be taken for FLAIR, and is named after mask"):
        find_cases("in", {}, CHANNELS)


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        ("s_FLAIR s_T1w s_T1ce", "FLAIR T1 T1c"),
        ("b-t1n b-t1c b-t2w b-t2f", "T1 T1c T2 FLAIR"),
        ("P_T1 P_T1Gd P_T2 P_T2_FLAIR", "T1 T1c T2 FLAIR"),
    ],
)
def test_each_file_of_a_folder_is_the_channel_that_its_name_means(
    names: str, channels: str, tmp_path: Path
) -> None:
    pairs = zip(names.split(), channels.split(), strict=True)
    expected = {channel: f"{name}.nii.gz" for name, channel in pairs}
    for name in expected.values():
        write_nifti(tmp_path / name, scan())
    (case,) = find_cases(str(tmp_path), {}, [*reversed(channels.split())])
    assert {channel: Path(file).name for channel, file in case.assignment.items()} == expected


def test_names_that_leave_a_channel_open_are_refused(tmp_path: Path) -> None:
    for name in ("s_FLAIR", "s_T1w", "s_other"):
        write_nifti(tmp_path / f"{name}.nii.gz", scan())
    rule = "it is not clear which is FLAIR, T1, T1c: .*; assign them: sequences.FLAIR=NAME"
    with pytest.raises(RequestError, match=rule):
        find_cases(str(tmp_path), {}, ["FLAIR", "T1", "T1c"])


def test_a_list_in_the_wrong_order_is_refused_where_one_channel_contains_the_other(
    tmp_path: Path,
) -> None:
    write_nifti(tmp_path / "P1_t1ce.nii.gz", scan())
    rule = "is given as T1, and named after T1c; the order is T1, T1c"
    with pytest.raises(RequestError, match=rule):
        find_cases([str(tmp_path / "P1_t1ce.nii.gz"), None], {}, ["T1", "T1c"])


def test_a_scan_in_a_subfolder_is_a_cohort_of_one(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "anat" / "s_FLAIR.nii.gz", scan())
    (case,) = find_cases(str(tmp_path), {}, CHANNELS)
    assert case.name == "anat" and list(case.files) == [path]
