"""Volumes that DICOM files make up: series, several volumes in one, other objects, damage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import MATRIX, SHAPE, dataset, items, place, ramp, write_enhanced, write_series
from pydicom import uid
from pydicom.fileset import FileSet

from brainseg.core.errors import DataError
from brainseg.data.imageio.dicom import find_series, open_file


def fault(folder: Path) -> str:
    """Return the reason why the only volume of a folder is refused."""
    (volume,), _ = find_series(folder)
    with pytest.raises(DataError) as caught:
        _ = volume.grid
    return str(caught.value)


def test_objects_that_are_no_scan_are_left_aside_and_named(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", ramp())
    colour = np.zeros((4, 5, 3), np.uint8)
    capture = dataset(
        colour[:, :, 0],
        uid.SecondaryCaptureImageStorage,
        Modality="OT",
        SeriesInstanceUID="1.9",
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        PixelData=colour.tobytes(),
    )
    grey = dataset(colour[:, :, 0], uid.SecondaryCaptureImageStorage, Modality="OT")
    dose = dataset(np.zeros((2, 4, 5), np.uint16), uid.RTDoseStorage, Modality="RTDOSE")
    mask = dataset(np.zeros((4, 5), np.uint8), uid.SegmentationStorage, Modality="SEG")
    report = dataset(colour[:, :, 0], uid.BasicTextSRStorage, Modality="SR")
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated"):
        delattr(report, keyword)
    spectrum = dataset(colour[:, :, 0], uid.MRSpectroscopyStorage)
    del spectrum.PixelData, spectrum.PhotometricInterpretation, spectrum.SamplesPerPixel
    spectrum.save_as(tmp_path / "spectrum.dcm", enforce_file_format=True)
    files = {"capture": capture, "grey": grey, "dose": dose, "mask": mask, "report": report}
    for name, file in files.items():
        file.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    capture.save_as(tmp_path / "second.dcm", enforce_file_format=True)
    index = FileSet()
    study = {"StudyID": "1", "StudyDate": "20200101", "StudyTime": "120000"}
    record = {
        "PatientName": "A",
        "SeriesInstanceUID": "1.7",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
    }
    index.add(dataset(np.zeros((4, 5), np.uint8), **study, **record))
    index.write(tmp_path / "medium")
    (tmp_path / "README").write_text("no DICOM")
    (tmp_path / "._000.dcm").write_bytes(b"\0\5\x16\7 left by macOS")
    volumes, lines = find_series(tmp_path)
    (scan,) = (volume for volume in volumes if "scan" in volume.names)
    assert np.array_equal(scan.read(), ramp()) and len(volumes) == 2
    assert sorted(lines) == [
        "capture.dcm and 1 more: a colour image",
        "dose.dcm: a radiation dose",
        "grey.dcm: a screen capture without a place in the patient",
        "mask.dcm: a segmentation",
        "medium/DICOMDIR: a DICOMDIR, the index of a medium",
        "report.dcm: an object without an image (Basic Text SR Storage)",
        "spectrum.dcm: an object without an image (MR Spectroscopy Storage)",
    ]
    with pytest.raises(DataError, match=r"mask\.dcm is a segmentation, not an image of a scan"):
        open_file(tmp_path / "mask.dcm")
    with pytest.raises(DataError, match="README is no DICOM file"):
        open_file(tmp_path / "README")


def test_another_modality_is_a_note_and_a_name(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(), Modality="CT", SOPClassUID=uid.CTImageStorage)
    (volume,), _ = find_series(tmp_path)
    assert volume.modality == "CT" and "CT" in volume.names
    assert volume.notes == ["DICOM modality CT, not MR"]
    write_series(tmp_path / "mr", ramp(), Modality=None, SeriesInstanceUID="1.5")
    assert [volume.modality for volume in find_series(tmp_path / "mr")[0]] == ["MR"]


def test_a_truncated_slice_is_named_and_its_series_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ramp())
    write_series(tmp_path / "other", ramp(), SeriesInstanceUID="1.5")
    content = paths[-1].read_bytes()
    for length in (len(content) - 1, len(content) - 90, len(content) - 200, 600, 400, 140, 100, 0):
        paths[-1].write_bytes(content[:length])
        volumes, lines = find_series(tmp_path)
        by_name = {volume.names[0]: volume for volume in volumes}
        assert by_name["other"].grid.shape == SHAPE
        with pytest.raises(DataError, match=paths[-1].name):
            _ = by_name["t2 flair tra"].grid
        assert all(paths[-1].name in line for line in lines)


def test_a_damaged_file_with_no_name_of_its_own_is_found(tmp_path: Path) -> None:
    write_series(tmp_path, ramp())
    (tmp_path / "IM0099").touch()
    assert "IM0099 is damaged or no DICOM file. Copy it again from its source" in fault(tmp_path)
    assert len(find_series(tmp_path)[1]) == 1


def test_a_duplicate_file_is_named_with_its_twin(tmp_path: Path) -> None:
    first = write_series(tmp_path, ramp())[1]
    (tmp_path / "IM0003 (1).dcm").write_bytes(first.read_bytes())
    reason = fault(tmp_path)
    assert "IM0003 (1).dcm and " in reason and f"{first.name} are two copies of one slice" in reason


def test_slices_at_one_place_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ramp())
    file = pydicom.dcmread(paths[0])
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = "1.2.77"
    file.save_as(tmp_path / "again.dcm")
    assert "lie at one place, and nothing in their headers tells two volumes" in fault(tmp_path)


def test_a_missing_slice_is_refused_with_the_distances(tmp_path: Path) -> None:
    write_series(tmp_path, ramp())[2].unlink()
    assert ": slices are 8.00 mm apart between IM0003.dcm and IM0004.dcm, and 4.00 mm" in fault(
        tmp_path
    )


def test_a_series_in_several_folders_is_one(tmp_path: Path) -> None:
    for number, path in enumerate(write_series(tmp_path, ramp())):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        path.rename(tmp_path / str(number % 2) / path.name)
    (volume,), _ = find_series(tmp_path)
    assert np.array_equal(volume.read(), ramp())
    assert volume.notes == ["the DICOM series is spread over several folders"]
    assert list(volume.names[:2]) == ["0", "1"]


def test_copies_of_a_series_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "a", ramp()):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    volumes, _ = find_series(tmp_path)
    assert [volume.names[0] for volume in volumes] == ["a", "b"]
    assert all(np.array_equal(volume.read(), ramp()) for volume in volumes)


def test_a_numbered_folder_is_a_name(tmp_path: Path) -> None:
    write_series(tmp_path / "2", ramp(), SeriesInstanceUID="1.5")
    write_series(tmp_path / "3", ramp(), SeriesInstanceUID="1.6")
    assert [volume.names[0] for volume in find_series(tmp_path)[0]] == ["2", "3"]


@pytest.mark.parametrize(
    ("keyword", "values", "details"),
    [
        ("EchoTime", [100, 9], ["echo time 9 ms", "echo time 100 ms"]),
        ("TemporalPositionIdentifier", [1, 2], ["time point 1", "time point 2"]),
        ("DiffusionBValue", [0, 1000.0], ["b-value 0 s/mm2", "b-value 1000 s/mm2"]),
        ("ImageType", [["O", "M"], ["O", "P"]], ["image type O/M", "image type O/P"]),
        ("AcquisitionNumber", [3, 4], ["acquisition 3", "acquisition 4"]),
    ],
)
def test_several_volumes_of_a_series_are_told_apart(
    keyword: str, values: list, details: list[str], tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        paths = write_series(tmp_path / "new", ramp() + 300 * number, **{keyword: value})
        for path in paths:
            path.rename(tmp_path / f"{number}_{path.name}")
    volumes, _ = find_series(tmp_path)
    assert [volume.names[0] for volume in volumes] == [f"t2 flair tra, {name}" for name in details]
    assert [volume.names[1] for volume in volumes] == ["volume 1", "volume 2"]
    order = [1, 0] if keyword == "EchoTime" else [0, 1]
    for volume, number in zip(volumes, order, strict=True):
        assert np.array_equal(volume.read(), ramp() + 300 * number)
    paths = [path for path in volumes[0].files if not path.name.endswith("IM0002.dcm")]
    next(path for path in volumes[0].files if path not in paths).unlink()
    with pytest.raises(DataError, match="has 4 slices, and another of its series 5"):
        _ = find_series(tmp_path)[0][0].grid


def test_volumes_are_chosen_beside_repetitions_that_nothing_tells_apart(tmp_path: Path) -> None:
    for number, value in enumerate((0, 0, 1000)):
        for path in write_series(tmp_path / "new", ramp() + number, DiffusionBValue=value):
            path.rename(tmp_path / f"{number}_{path.name}")
    repeated, single = find_series(tmp_path)[0]
    with pytest.raises(DataError, match="nothing in their headers tells two volumes apart"):
        _ = repeated.grid
    assert np.array_equal(single.read(), ramp() + 2)


def test_an_attribute_that_differs_from_slice_to_slice_makes_no_volumes(tmp_path: Path) -> None:
    def number(file: pydicom.Dataset, k: int) -> None:
        file.TriggerTime, file.AcquisitionNumber, file.EchoTime = 100 * k, k, 90 + k

    write_series(tmp_path, ramp(), change=number)
    (volume,), _ = find_series(tmp_path)
    assert np.array_equal(volume.read(), ramp())


def test_a_localizer_gives_a_volume_for_each_orientation(tmp_path: Path) -> None:
    for number, axes in enumerate(([0, 1, 2], [1, 2, 0], [0, 2, 1])):
        matrix = np.zeros((3, 4))
        for column, axis in enumerate(axes):
            matrix[axis, column] = (1.0, 1.5, 4.0)[column]
        for path in write_series(tmp_path / "new", ramp((7, 6, 2)), matrix):
            path.rename(tmp_path / f"{number}_{path.name}")
    volumes, _ = find_series(tmp_path)
    names = [volume.names[0] for volume in volumes]
    assert names == [f"t2 flair tra, {plane} 7 x 6" for plane in ("axial", "sagittal", "coronal")]
    assert all(volume.grid.shape == (7, 6, 2) for volume in volumes)


def test_a_mosaic_is_refused_in_words(tmp_path: Path) -> None:
    write_series(tmp_path, ramp((6, 6, 1)), ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    assert "a Siemens mosaic, which shows all slices as tiles of one image" in fault(tmp_path)


def frames(values: list, sequence: str, keyword: str) -> Callable[[int], dict]:
    """Return functional groups in which the frames have these values by turns."""
    return lambda frame: {sequence: items(**{keyword: values[frame % len(values)]})}


@pytest.mark.parametrize(
    ("sequence", "keyword", "values", "details"),
    [
        (
            "MREchoSequence",
            "EffectiveEchoTime",
            [20.0, 90.0],
            ["echo time 20 ms", "echo time 90 ms"],
        ),
        ("FrameContentSequence", "TemporalPositionIndex", [1, 2], ["time point 1", "time point 2"]),
        ("MRDiffusionSequence", "DiffusionBValue", [0.0, 1e3], ["b-value 0 ", "b-value 1000 "]),
        ("FrameContentSequence", "StackID", ["1", "2"], ["stack 1", "stack 2"]),
        ("FrameContentSequence", "FrameComments", ["", ""], ["repetition 1", "repetition 2"]),
    ],
)
def test_volumes_of_an_enhanced_object_are_chosen_by_number(
    sequence: str, keyword: str, values: list, details: list[str], tmp_path: Path
) -> None:
    both = np.stack([ramp(), ramp() + 300], -1).reshape(*SHAPE[:2], -1)
    places = [k for k in range(SHAPE[2]) for _ in values]
    path = tmp_path / "a.dcm"
    write_enhanced(path, both, groups=frames(values, sequence, keyword), places=places)
    with pytest.raises(
        DataError, match=f"a.dcm holds 2 volumes \\(1: {details[0]}.*; 2: {details[1]}"
    ):
        open_file(path)
    for number in range(2):
        assert np.array_equal(open_file(path, number + 1).read(), ramp() + 300 * number)
    with pytest.raises(DataError, match="holds no volume 3; choose one from 1 to 2"):
        open_file(path, 3)
    assert len(find_series(tmp_path)[0]) == 2


def test_a_volume_in_several_enhanced_objects_is_one(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", ramp()[:, :, :2], places=[0, 1])
    write_enhanced(tmp_path / "b.dcm", ramp()[:, :, 2:], places=[2, 3, 4])
    (volume,), _ = find_series(tmp_path)
    assert np.array_equal(volume.read(), ramp())


def test_an_enhanced_object_is_refused_for_what_single_slices_are_refused_for(
    tmp_path: Path,
) -> None:
    path = write_enhanced(tmp_path / "a.dcm", ramp(), places=[0, 1, 2, 4, 5])
    with pytest.raises(DataError, match=r"8\.00 mm apart between frame 3 and frame 4, and 4\.00"):
        _ = open_file(path).grid
    file = pydicom.dcmread(path)
    file.PerFrameFunctionalGroupsSequence = file.PerFrameFunctionalGroupsSequence[:4]
    file.save_as(path)
    with pytest.raises(DataError, match="the header describes 4 frames, and the file holds 5"):
        open_file(path)
    del file.PerFrameFunctionalGroupsSequence, file.SharedFunctionalGroupsSequence
    file.save_as(path)
    with pytest.raises(DataError, match="5 frames, and the header gives no frame a position"):
        open_file(path)


@pytest.mark.parametrize(
    ("keyword", "value", "rule"),
    [
        ("ImagePositionPatient", [0, 0], "ImagePositionPatient must be 3 finite numbers"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "two perpendicular directions of length 1"),
        ("ImageOrientationPatient", [0] * 6, "two perpendicular directions of length 1"),
        ("HighBit", 11, "are not a way to store pixels"),
        ("BitsAllocated", 12, "are not a way to store pixels"),
        ("Rows", 6000, "truncated: it holds 84 of the 84,000 bytes"),
        ("NumberOfFrames", 10**6, "voxels; at most"),
    ],
)
def test_headers_that_do_not_hold_are_refused(
    keyword: str, value: object, rule: str, tmp_path: Path
) -> None:
    columns = 60000 if keyword == "NumberOfFrames" else 7
    write_series(tmp_path, ramp(), **{keyword: value, "Columns": columns})
    assert rule in fault(tmp_path)


def test_a_header_with_fewer_slices_than_acquired_is_a_note(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(), ImagesInAcquisition=7)
    (volume,), _ = find_series(tmp_path)
    assert volume.notes == ["5 slices; the DICOM header says 7 images in acquisition"]


def test_a_slice_that_changes_after_it_was_judged_is_a_data_error(tmp_path: Path) -> None:
    path = write_series(tmp_path, ramp())[0]
    (volume,), _ = find_series(tmp_path)
    assert volume.grid.shape == SHAPE
    file = dataset(np.zeros((3, 3), np.uint16))
    place(file, MATRIX, 0)
    file.save_as(path)
    with pytest.raises(DataError, match="has other sizes than the header says"):
        volume.read()
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        volume.read()
