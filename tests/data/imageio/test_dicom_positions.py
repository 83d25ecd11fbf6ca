"""Positions of DICOM voxels: where pydicom's own attributes say, and where dcm2niix puts them."""

import itertools
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import MATRIX, SHAPE, dataset, items, place, ramp, write_enhanced, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainseg.core.errors import DataError
from brainseg.data.imageio.dicom import DicomVolume, find_series, open_file

AXES = list(itertools.permutations(range(3)))
SIGNS = list(itertools.product((1, -1), repeat=3))


def oriented_matrix(
    axes: tuple[int, ...], signs: tuple[int, ...], oblique: bool = False
) -> np.ndarray:
    """Return a matrix (3, 4) whose columns lie along the patient's axes in this order and sense."""
    matrix = np.zeros((3, 4))
    for column, (axis, sign, side) in enumerate(zip(axes, signs, (1.0, 1.5, 4.0), strict=True)):
        matrix[axis, column] = sign * side
    matrix[:, 3] = -30, -40, -20
    if oblique:
        matrix[:, :3] = nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) @ matrix[:, :3]
    return matrix


def only(folder: Path) -> DicomVolume:
    volumes, lines = find_series(folder)
    assert len(volumes) == 1 and lines == []
    return volumes[0]


def check_positions(volume: DicomVolume, source: np.ndarray, matrix: np.ndarray) -> None:
    """Assert that every value of `source` lies at its place in LPS mm."""
    values, affine = volume.read(), volume.grid.affine
    assert sorted(values.shape) == sorted(source.shape) == sorted(volume.grid.shape)
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    source_index = np.stack(np.meshgrid(*map(np.arange, source.shape), indexing="ij"), -1)
    expected = (source_index @ matrix[:, :3].T + matrix[:, 3]) * (-1, -1, 1)
    by_value = np.argsort(values.ravel())
    assert np.array_equal(values.ravel()[by_value], np.sort(source.ravel()))
    expected = expected.reshape(-1, 3)[np.argsort(source.ravel())]
    assert np.allclose(places.reshape(-1, 3)[by_value], expected, atol=1e-3)


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("axes", AXES)
def test_a_series_lies_where_the_header_says(axes: tuple, signs: tuple, tmp_path: Path) -> None:
    matrix = oriented_matrix(axes, signs, oblique=True)
    write_series(tmp_path, ramp(), matrix)
    check_positions(only(tmp_path), ramp(), matrix)


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("axes", AXES)
def test_an_enhanced_object_lies_where_the_header_says(
    axes: tuple, signs: tuple, tmp_path: Path
) -> None:
    matrix = oriented_matrix(axes, signs)
    order = [3, 0, 4, 1, 2]
    frames = ramp()[:, :, order]
    path = write_enhanced(tmp_path / "a.dcm", frames, matrix, places=order, is_shared=signs[0] > 0)
    check_positions(open_file(path), ramp(), matrix)


def test_voxel_positions_are_those_of_each_file(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ramp(), oriented_matrix((1, 2, 0), (1, -1, 1), oblique=True))
    volume = only(tmp_path)
    values, affine = volume.read(), volume.grid.affine
    for path in paths:
        file = pydicom.dcmread(path)
        i, j, k = np.argwhere(values == file.pixel_array[4, 2])[0]
        along_i, along_j = np.reshape(file.ImageOrientationPatient, (2, 3)).astype(float)
        rows, columns = map(float, file.PixelSpacing)
        expected = np.array(file.ImagePositionPatient) + 2 * columns * along_i + 4 * rows * along_j
        assert (i, j) == (2, 4)
        assert np.allclose(affine @ [i, j, k, 1], [*(expected * (-1, -1, 1)), 1], atol=1e-4)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 3), shift=st.tuples(*[st.floats(-200, 200)] * 3))
def test_any_rotation_is_read(angles: tuple, shift: tuple, tmp_path: Path) -> None:
    matrix = np.column_stack([nibabel.eulerangles.euler2mat(*angles) * (1, 1.5, 4), shift])
    path = write_enhanced(tmp_path / "a.dcm", ramp(), matrix)
    check_positions(open_file(path), ramp(), matrix)


def run_dcm2niix(source: Path, output: Path) -> nibabel.Nifti1Image:
    """Return the only image that dcm2niix makes of a folder."""
    output.mkdir()
    program = Path(sys.executable).with_name("dcm2niix")
    if not program.exists():
        import dcm2niix

        program = Path(dcm2niix.bin)
    command = [str(program), "-z", "n", "-b", "n", "-f", "out", "-o", str(output), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (path,) = output.glob("*.nii")
    return nibabel.load(path)


@pytest.mark.parametrize("kind", ["series", "enhanced"])
@pytest.mark.parametrize(
    ("axes", "signs"), [((0, 1, 2), (1, 1, 1)), ((1, 2, 0), (1, -1, 1)), ((0, 2, 1), (1, -1, -1))]
)
def test_dcm2niix_puts_voxels_to_the_same_places(
    kind: str, axes: tuple, signs: tuple, tmp_path: Path
) -> None:
    pytest.importorskip("dcm2niix")
    matrix, shape = oriented_matrix(axes, signs, oblique=True), (24, 20, 8)
    (tmp_path / "in").mkdir()
    if kind == "series":
        paths = write_series(tmp_path / "in", ramp(shape, np.int16), matrix)
        volume = only(tmp_path / "in")
        assert len(paths) == 8
    else:
        stacks = {
            f: {
                "FrameContentSequence": items(
                    StackID="1", InStackPositionNumber=f + 1, DimensionIndexValues=[1, f + 1]
                )
            }
            for f in range(8)
        }
        path = write_enhanced(
            tmp_path / "in" / "a.dcm", ramp(shape, np.int16), matrix, stacks.__getitem__
        )
        volume = open_file(path)
    image = run_dcm2niix(tmp_path / "in", tmp_path / "out")
    values, affine = volume.read(), volume.grid.affine
    theirs = np.asarray(image.dataobj)
    back = np.linalg.inv(image.affine) @ affine
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1)
    their_index = index @ back[:3, :3].T + back[:3, 3]
    assert np.abs(their_index - np.rint(their_index)).max() < 0.01
    assert np.array_equal(
        theirs[tuple(np.moveaxis(np.rint(their_index).astype(int), -1, 0))], values
    )


def test_a_legacy_converted_object_of_highdicom_is_read(tmp_path: Path) -> None:
    legacy = pytest.importorskip("highdicom.legacy")
    matrix = oriented_matrix((1, 2, 0), (1, -1, 1), oblique=True)

    def complete(file: pydicom.Dataset, k: int) -> None:
        file.InstanceNumber, file.FrameOfReferenceUID = 5 - k, "1.2.9"
        for keyword in (
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "AccessionNumber",
            "ReferringPhysicianName",
            "Manufacturer",
            "PositionReferenceIndicator",
            "AcquisitionDate",
        ):
            setattr(file, keyword, "")
        file.ImageType, file.SeriesNumber = ["ORIGINAL", "PRIMARY", "M"], 1
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = k + 1, 0, "US"
        file.EchoTime, file.AcquisitionNumber = 90, 1

    paths = write_series(tmp_path / "in", ramp(), matrix, complete)
    legacy_object = legacy.LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(path) for path in paths], "1.2.5", 1, "1.2.6", 1
    )
    legacy_object.save_as(tmp_path / "a.dcm")
    expected = ramp().astype(float) * (1 + np.arange(SHAPE[2]))
    volume = open_file(tmp_path / "a.dcm")
    assert np.allclose(np.sort(volume.read().ravel()), np.sort(expected.ravel()))
    assert volume.grid.difference(only(tmp_path / "in").grid) == ""
    assert np.array_equal(volume.read(), only(tmp_path / "in").read())


def test_a_tilted_gantry_gives_a_sheared_grid_and_a_note(tmp_path: Path) -> None:
    matrix = MATRIX.copy()
    matrix[:, 2] = 0, 1, 4
    write_series(tmp_path, ramp(), matrix, SliceThickness=4)
    volume = only(tmp_path)
    check_positions(volume, ramp(), matrix)
    assert volume.notes == [
        "DICOM slices are sheared by 14.0 degrees: read as stored, not resampled"
    ]
    assert volume.grid.voxel_millilitres == pytest.approx(6 / 1000)


def test_slices_off_a_straight_stack_are_refused(tmp_path: Path) -> None:
    def move(file: pydicom.Dataset, k: int) -> None:
        file.ImagePositionPatient = [-30 + (3 if k == 2 else 0), -40, -20 + 4 * k]

    write_series(tmp_path, ramp(), change=move)
    with pytest.raises(DataError, match=r"slices lie up to 3\.00 mm off a straight and even stack"):
        _ = only(tmp_path).grid


def test_distances_between_slices_come_from_positions_alone(tmp_path: Path) -> None:
    def mislead(file: pydicom.Dataset, k: int) -> None:
        file.InstanceNumber = 17 if k == 0 else 5 - k
        file.SpacingBetweenSlices, file.SliceThickness, file.SliceLocation = 1, 2.5, -k

    write_series(tmp_path, ramp(), change=mislead)
    volume = only(tmp_path)
    assert volume.grid.spacing == pytest.approx((1, 1.5, 4)) and volume.notes == []
    check_positions(volume, ramp(), MATRIX)


@pytest.mark.parametrize("spacing", [None, [0, 0], ["", ""]])
def test_without_a_pixel_spacing_there_are_no_millilitres(spacing: object, tmp_path: Path) -> None:
    write_series(tmp_path, ramp(), PixelSpacing=spacing)
    volume = only(tmp_path)
    assert not volume.grid.spacing_known
    assert volume.notes == ["DICOM without a pixel spacing: no volume in millilitres"]
    assert np.array_equal(volume.read(), ramp())


@pytest.mark.parametrize(
    ("axes", "plane"), [((0, 1, 2), ""), ((1, 2, 0), "sagittal"), ((0, 2, 1), "coronal")]
)
def test_a_slice_alone_must_be_axial(axes: tuple, plane: str, tmp_path: Path) -> None:
    file = dataset(ramp((7, 6, 1))[:, :, 0].T)
    place(file, oriented_matrix(axes, (1, -1 if plane else 1, 1)), 0)
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume = open_file(tmp_path / "a.dcm")
    if plane:
        with pytest.raises(DataError, match=f"a single {plane} slice, and the network takes axial"):
            _ = volume.grid
    else:
        assert volume.grid.shape == (7, 6, 1) and not volume.grid.spacing_known
        assert volume.notes == ["one DICOM slice: no volume in millilitres"]


def test_a_slice_without_a_position_has_no_known_orientation(tmp_path: Path) -> None:
    dataset(ramp((7, 6, 1))[:, :, 0].T).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert not open_file(tmp_path / "a.dcm").grid.orientation_known
    write_series(tmp_path / "series", ramp(), ImagePositionPatient=None)
    with pytest.raises(DataError, match="no position and orientation in the patient"):
        _ = only(tmp_path / "series").grid
