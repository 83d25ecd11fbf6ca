"""predict on cohorts below a folder: the cases of every layout, scores, and cases that cannot be read."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_files import write_series
from scans import SHAPE, THRESHOLD, mask_in_place, scan, threshold_weights, truth, write_nifti
from test_dicom_predict import MATRIX
from test_predict import call

from brainseg import evaluate
from brainseg.cli.main import run_command
from brainseg.core.errors import RequestError
from brainseg.data.cases.cohort_case import FaultyCase
from brainseg.data.cases.find import find_cases
from brainseg.data.conversion import convert
from brainseg.data.volume import CHANNELS

OTHER = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)  # bright elsewhere than FLAIR


def describe(source: Path, **content: object) -> Path:
    """Write the dataset.json of nnU-Net."""
    text = json.dumps(
        {"labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"} | content
    )
    (source / "dataset.json").write_text(text)
    return source


def write_nnunet(source: Path, part: str = "Ts") -> Path:
    """Write three cases of two channels, T1 and flair."""
    for case in ("P1", "P2", "P3"):
        write_nifti(source / f"images{part}" / f"{case}_0000.nii.gz", OTHER)
        write_nifti(source / f"images{part}" / f"{case}_0001.nii.gz", scan())
    return describe(source, channel_names={"0": "T1", "1": "flair"})


def write_bids(source: Path, *subjects: str) -> Path:
    for subject in subjects:
        name = f"sub-{subject}/ses-1/anat/sub-{subject}_ses-1"
        for suffix, volume in (("FLAIR", scan()), ("T1w", OTHER), ("ce-gd_T1w", OTHER)):
            write_nifti(source / f"{name}_{suffix}.nii.gz", volume)
    return source


def write_brats(source: Path, *cases: str) -> Path:
    for case in cases:
        for part, volume in (("flair", scan()), ("t1", OTHER), ("t1ce", OTHER), ("t2", OTHER)):
            write_nifti(source / case / f"{case}_{part}.nii.gz", volume)
    return source


def segment(tmp_path: Path, source: Path, *overrides: str, code: int = 0) -> dict:
    """Return summary.json of predict on `source` with a network that finds what is bright in FLAIR."""
    weights, output = threshold_weights(tmp_path / "w.pt"), tmp_path / "out"
    request = [f"checkpoint={weights}", f"input={source}", f"output={output}", "overlays=false"]
    call(*request, "viewer=0", *overrides, *THRESHOLD, code=code)
    return json.loads((output / "summary.json").read_text())


def check_masks(tmp_path: Path, *names: str) -> None:
    """Assert that these cases, and no others, mark the block of FLAIR at its place."""
    masks = {path.parent.name: path for path in (tmp_path / "out").glob("*/*_mask.nii.gz")}
    assert sorted(masks) == sorted(names)
    for path in masks.values():
        assert np.array_equal(mask_in_place(path), truth())


@pytest.mark.parametrize("below", ["", "imagesTs"])
def test_nnunet_cases_are_read_by_the_names_of_its_channels(below: str, tmp_path, capsys) -> None:
    source = write_nnunet(tmp_path / "Dataset001")
    segment(tmp_path, source / below)
    check_masks(tmp_path, "P1", "P2", "P3")
    files = [f"{source}/imagesTs/P2_000{number}.nii.gz" for number in (0, 1)]
    line = f"sequences:     pre-contrast: {files[0]}, FLAIR: {files[1]}, post-contrast: missing"
    assert line in capsys.readouterr().out.splitlines()


def test_a_decathlon_case_holds_all_channels_in_one_file(tmp_path: Path) -> None:
    image = nibabel.load(write_nifti(tmp_path / "flair.nii", scan()))
    both = np.stack([OTHER, scan()], axis=-1)
    (tmp_path / "Task01" / "imagesTs").mkdir(parents=True)
    for case in ("BRATS_485", "BRATS_486"):
        path = tmp_path / "Task01" / "imagesTs" / f"{case}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(both, image.affine), path)
    segment(tmp_path, describe(tmp_path / "Task01", modality={"0": "T1w", "1": "FLAIR"}))
    check_masks(tmp_path, "BRATS_485", "BRATS_486")


def test_bids_has_a_case_per_session(tmp_path: Path) -> None:
    source = write_bids(tmp_path / "bids", "01", "02")
    facts = segment(tmp_path, source)
    check_masks(tmp_path, "sub-01_ses-1", "sub-02_ses-1")
    by_sequence = facts["sequences"]["sub-02_ses-1"]
    assert {channel: Path(file).name for channel, file in by_sequence.items()} == {
        "pre-contrast": "sub-02_ses-1_T1w.nii.gz",
        "FLAIR": "sub-02_ses-1_FLAIR.nii.gz",
        "post-contrast": "sub-02_ses-1_ce-gd_T1w.nii.gz",
    }


def test_brats_cases_leave_t2_aside(tmp_path: Path) -> None:
    facts = segment(tmp_path, write_brats(tmp_path / "brats", "BraTS2021_00001", "BraTS2021_00002"))
    check_masks(tmp_path, "BraTS2021_00001", "BraTS2021_00002")
    assert any(note.startswith("T2 ignored") for note in facts["notes"])


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        ("{}_flair.nii.gz", "*_flair.nii.gz"),
        ("{}/flair.nii.gz", "flair.nii.gz"),
        ("images/{}-x.nii", "images/{{patient}}-x.nii"),
        ("{}/anat/s_flair.nii", "*/anat/s_flair.nii"),
    ],
)
def test_patterns_name_the_cases(files: str, pattern: str, tmp_path: Path) -> None:
    for case in ("P1", "P2"):
        write_nifti(tmp_path / "in" / files.format(case), scan())
    name = pattern.replace("{{", "{").replace("}}", "}")
    segment(tmp_path, tmp_path / "in", f"sequences.flair={name}")
    check_masks(tmp_path, "P1", "P2")


def test_a_folder_per_patient_needs_no_pattern(tmp_path: Path) -> None:
    for case in ("P1", "P2"):
        write_nifti(tmp_path / "in" / case / "scan_flair.nii.gz", scan())
        write_nifti(tmp_path / "in" / case / "scan_t1.nii.gz", OTHER)
    facts = segment(tmp_path, tmp_path / "in")
    check_masks(tmp_path, "P1", "P2")
    assert set(facts["sequences"]["P1"]) == {"pre-contrast", "FLAIR"}


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "P1_flair.nii.gz", scan())
    for sequences, rule in (
        ({"FLAIR": "*_fl.nii.gz"}, r"sequences.FLAIR=\*_fl.nii.gz: matches no file below"),
        (
            {"T5": "*_flair.nii.gz"},
            "sequences=T5: the checkpoint knows no such sequence; known: pre",
        ),
    ):
        with pytest.raises(RequestError, match=rule):
            find_cases(str(tmp_path / "in"), sequences, CHANNELS)


def test_a_case_with_mixed_grids_stops_no_other(tmp_path: Path, caplog) -> None:
    source = write_nnunet(tmp_path / "in")
    write_nifti(source / "imagesTs" / "P2_0000.nii.gz", OTHER, shift=3.0)
    facts = segment(tmp_path, source, code=1)
    check_masks(tmp_path, "P1", "P3")
    assert list(facts["failed"]) == ["P2"] and facts["made"] == 2
    assert "lie on different grids (a corner lies 3 mm away)" in facts["failed"]["P2"]
    assert "P2: " in caplog.text


def test_a_case_that_cannot_be_read_or_lacks_flair_stops_no_other(tmp_path: Path) -> None:
    source = write_nnunet(tmp_path / "in")
    (source / "imagesTs" / "P1_0001.nii.gz").write_bytes(b"no NIfTI")
    (source / "imagesTs" / "P3_0001.nii.gz").unlink()
    facts = segment(tmp_path, source, code=1)
    check_masks(tmp_path, "P2")
    assert "P1_0001.nii.gz" in facts["failed"]["P1"]
    assert "only FLAIR can stand in for another" in facts["failed"]["P3"]
    (source / "imagesTs" / "P2_0001.nii.gz").unlink()
    with pytest.raises(RequestError, match=r"P1: .*; 2 more cases cannot be read either"):
        find_cases(str(source), {}, CHANNELS)


def test_a_missing_sequence_is_named_and_flair_stands_in(tmp_path: Path) -> None:
    source = write_nnunet(tmp_path / "in")
    (source / "imagesTs" / "P2_0000.nii.gz").unlink()
    notes = segment(tmp_path, source)["notes"]
    check_masks(tmp_path, "P1", "P2", "P3")
    named = next(names for note, names in notes.items() if note.startswith("no pre-contrast"))
    assert named == ["P2"]


def test_scores_are_those_of_evaluate_on_the_prepared_cohort(tmp_path: Path) -> None:
    source = write_nnunet(tmp_path / "Dataset001", "Tr")
    for number, case in enumerate(("P1", "P2", "P3")):
        mask = np.roll(truth(), number, axis=0).astype(np.uint8)
        write_nifti(source / "labelsTr" / f"{case}.nii.gz", mask, "RAS" if number else "LPS")
    describe(source, channel_names={"0": "pre-contrast", "1": "FLAIR", "2": "post-contrast"})
    for number, case in enumerate(("P1", "P2", "P3")):
        noise = np.random.default_rng(number).integers(0, 30, SHAPE).astype(np.int16)
        write_nifti(source / "imagesTr" / f"{case}_0001.nii.gz", np.maximum(scan(), 4 * noise))
        write_nifti(source / "imagesTr" / f"{case}_0002.nii.gz", OTHER)
    facts = segment(tmp_path, source)
    convert(source, tmp_path / "data.h5", workers=1)
    expected = evaluate_weights(tmp_path)
    scores = pd.read_csv(tmp_path / "out" / "patients.csv").set_index("patient").sort_index()
    pd.testing.assert_frame_equal(scores, expected)
    assert scores.dice["P1"] == 1 and scores.dice["P3"] < 1 and facts["metrics"]
    assert facts["sequences"]["P2"]["mask"].endswith("labelsTr/P2.nii.gz")


def evaluate_weights(tmp_path: Path) -> pd.DataFrame:
    """Return patients.csv of evaluate with the same weights."""
    output = tmp_path / "evaluation"
    request = [f"checkpoint={tmp_path / 'w.pt'}", f"data.path={tmp_path / 'data.h5'}", "split=all"]
    with pytest.raises(SystemExit) as ended:
        run_command(
            "evaluate",
            evaluate.run,
            evaluate.check_request,
            [*request, f"output={output}", "overlays=false", *THRESHOLD],
        )
    assert not ended.value.code
    return pd.read_csv(output / "patients.csv").set_index("patient").sort_index()


def test_a_mask_on_another_grid_or_of_other_classes(tmp_path: Path) -> None:
    source = write_nnunet(tmp_path / "in", "Tr")
    for case, shift in (("P1", 0.0), ("P2", 3.0)):
        write_nifti(source / "labelsTr" / f"{case}.nii.gz", truth().astype(np.uint8), shift=shift)
    first, second, third = find_cases(str(source), {}, CHANNELS)
    assert first.read().masks.sum() == truth().sum() and third.read().masks is None
    assert "not scored: labelsTr holds no P3.nii.gz" in third.notes
    with pytest.raises(
        ValueError, match=r"P2.nii.gz: the mask does not lie on the grid of the imag"
    ):
        second.read()
    describe(
        source,
        channel_names={"0": "T1", "1": "FLAIR"},
        labels={"background": 0, "core": 1, "oedema": 2},
    )
    (first, *_) = find_cases(str(source), {}, CHANNELS)
    assert (
        first.read().masks is None
        and "not scored: the masks have the classes core" in first.notes[-1]
    )
    (first, *_) = find_cases(str(source), {}, CHANNELS, classes=("background", "core", "oedema"))
    assert first.read().masks.sum() == truth().sum()


@pytest.mark.parametrize(("values", "is_scored"), [((1,), True), ((255,), True), ((1, 2), False)])
def test_masks_whose_values_are_not_explained_stop_nothing(
    values: tuple[int, ...], is_scored: bool, tmp_path: Path
) -> None:
    for case in ("P1", "P2"):
        write_nifti(tmp_path / "in" / case / "flair.nii.gz", scan())
        mask = np.where(truth(), values[0], 0).astype(np.int16)
        mask[0, 0, 0] = values[-1]
        write_nifti(tmp_path / "in" / case / "seg.nii.gz", mask)
    facts = segment(tmp_path, tmp_path / "in")
    check_masks(tmp_path, "P1", "P2")
    assert bool(facts["metrics"]) is is_scored
    noted = [names for note, names in facts["notes"].items() if "with the values 1,2" in note]
    assert noted == ([] if is_scored else [["P1", "P2"]])


def test_files_of_one_patient_are_no_cohort(tmp_path: Path) -> None:
    for name in ("pre-contrast", "FLAIR", "post-contrast"):
        write_nifti(tmp_path / "one" / f"{name}.nii.gz", scan())
    (case,) = find_cases(str(tmp_path / "one"), {}, CHANNELS)
    assert case.name == "one"
    for name in ("axial_flair", "sagittal_t1"):
        write_nifti(tmp_path / "two" / f"{name}.nii.gz", scan())
    with pytest.raises(RequestError, match="2 series, and it is not clear which is pre-contrast"):
        find_cases(str(tmp_path / "two"), {}, CHANNELS)
    for name in ("flair", "t1"):
        write_nifti(tmp_path / "three" / name / f"{name}.nii.gz", scan())
    with pytest.raises(RequestError, match=r"holds no slices, .* such as flair/flair.nii.gz, by"):
        find_cases(str(tmp_path / "three"), {}, CHANNELS)


def write_patients(source: Path, **patients: str) -> Path:
    """Write a folder per patient with a DICOM series of FLAIR, by the StudyInstanceUID of each."""
    for name, study in patients.items():
        tags = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.9", "PatientID": name}
        write_series(source / name / "series", scan(), MATRIX, **tags)
    return source


def test_dicom_folders_of_patients_have_a_case_each(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "in", P1="1.2.1", P2="1.2.2")
    segment(tmp_path, source)
    check_masks(tmp_path, "P1", "P2")
    shutil.rmtree(tmp_path / "out")
    write_patients(source, P3="1.2.3")
    (source / "P3" / "series" / "notes.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    facts = segment(tmp_path, source, "sequences.FLAIR=t2 flair", code=1)
    check_masks(tmp_path, "P1", "P2")
    assert list(facts["failed"]) == ["P3"]


def test_series_of_one_patient_under_several_study_uids_are_one_case(tmp_path: Path) -> None:
    for number, name in enumerate(CHANNELS):
        tags = {"StudyInstanceUID": f"1.2.{number}", "SeriesDescription": "", "PatientID": "P1"}
        write_series(
            tmp_path / "P1" / name, scan(), MATRIX, SeriesInstanceUID=f"1.{number}", **tags
        )
    (case,) = find_cases(str(tmp_path / "P1"), {}, CHANNELS)
    assert case.name == "P1" and list(case.assignment) == list(CHANNELS)


def test_dicom_patients_that_share_folders_are_refused(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "in", P1="1.2.1", P2="1.2.2")
    (source / "P2" / "series").rename(source / "P1" / "second")
    with pytest.raises(
        RequestError, match="holds 2 patients or studies by its DICOM headers, which"
    ):
        find_cases(str(source), {}, CHANNELS)
    (case,) = find_cases(str(source), {"FLAIR": "P1/second"}, CHANNELS)
    assert case.assignment["FLAIR"].startswith(f"{source}/P1/second")


def test_volume_chooses_one_of_an_enhanced_dicom_object(tmp_path: Path) -> None:
    from dicom_files import write_enhanced

    twice = np.concatenate([OTHER[:, :, :4], scan()[:, :, :4]], -1).astype(np.uint16)
    path = write_enhanced(tmp_path / "a.dcm", twice, MATRIX, places=[0, 1, 2, 3] * 2)
    (case,) = find_cases(str(path), {"FLAIR": "a.dcm"}, CHANNELS, volume=2)
    assert np.array_equal(case.volumes["FLAIR"].read(), scan()[:, :, :4])
    with pytest.raises(RequestError, match="choose one with volume=N, from 1 to 2"):
        find_cases(str(path), {}, CHANNELS)
    single = write_series(tmp_path / "series", scan(), MATRIX)[0]
    with pytest.raises(RequestError, match="holds one volume, and no volume 2; leave volume out"):
        find_cases(str(single), {}, CHANNELS, volume=2)


def test_a_faulty_case_raises_its_problem() -> None:
    case = FaultyCase("P1", CHANNELS, "P1: no image", {})
    with pytest.raises(ValueError, match="P1: no image"):
        case.read()
