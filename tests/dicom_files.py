"""DICOM files for tests, written by pydicom: series of single slices and enhanced objects.

Volumes are arrays (i, j, k) of columns, rows and slices. A `matrix` (3, 4) maps a voxel to LPS mm.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

SHAPE = (7, 6, 5)
NUMBERS = itertools.count(10**9)  # of instances: all of one length, as hypothesis needs it
MATRIX = np.array([[1.0, 0, 0, -30], [0, 1.5, 0, -40], [0, 0, 4.0, -20]])


def ramp(shape: Sequence[int] = SHAPE, dtype: object = np.uint16) -> np.ndarray:
    """Return a volume of which every voxel differs from all others."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def dataset(pixels: np.ndarray, sop_class: UID = MRImageStorage, **tags: object) -> FileDataset:
    """Return a dataset with pixels (rows, columns) or (frames, rows, columns), and no geometry."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        sop_class,
        f"1.2.826.0.1.{next(NUMBERS)}",
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    file.Modality, file.PatientID = "MR", "P1"
    file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    file.SeriesDescription = "t2 flair tra"
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = pixels.dtype.itemsize * 8
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        if value is None:
            delattr(file, tag)
        else:
            setattr(file, tag, value)
    return file


def place(file: Dataset, matrix: np.ndarray, k: int) -> None:
    """Write the geometry of slice `k` into a dataset, with nine significant digits."""
    sides = np.linalg.norm(matrix[:, :3], axis=0)
    file.PixelSpacing = [f"{sides[1]:.9g}", f"{sides[0]:.9g}"]
    file.ImageOrientationPatient = [f"{v:.9g}" for v in (matrix[:, :2] / sides[:2]).T.ravel()]
    file.ImagePositionPatient = [f"{v:.9g}" for v in matrix[:, 3] + k * matrix[:, 2]]
    file.SliceThickness = f"{sides[2]:.9g}"


def write_series(
    folder: Path,
    volume: np.ndarray,
    matrix: np.ndarray = MATRIX,
    change: Callable[[FileDataset, int], None] | None = None,
    **tags: object,
) -> list[Path]:
    """Write a file per slice, whose name says nothing of its place. `change` edits it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, count = [], volume.shape[2]
    step = 3 if count % 3 else 7  # without a common divisor, so that names are different
    for k in range(volume.shape[2]):
        file = dataset(np.ascontiguousarray(volume[:, :, k].T))
        place(file, matrix, k)
        for tag, value in tags.items():
            if value is None:
                delattr(file, tag)
            else:
                setattr(file, tag, value)
        if change is not None:
            change(file, k)
        paths.append(folder / f"IM{(step * k) % count:04d}.dcm")
        file.save_as(paths[-1], enforce_file_format=True)
    return paths


def items(**values: object) -> Items:
    """Return a sequence of one item."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Items([item])


def write_enhanced(
    path: Path,
    volume: np.ndarray,
    matrix: np.ndarray = MATRIX,
    groups: Callable[[int], Mapping[str, object]] = lambda frame: {},
    places: Sequence[int] | None = None,
    is_shared: bool = True,
    **tags: object,
) -> Path:
    """Write an enhanced object whose frame f lies at `places[f]`. `groups` adds to it.

    Orientation and spacing are shared functional groups, or repeated if `is_shared` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.ascontiguousarray(volume.transpose(2, 1, 0))
    file = dataset(frames, EnhancedMRImageStorage, NumberOfFrames=len(frames), **tags)
    by_frame = []
    for frame, k in enumerate(range(len(frames)) if places is None else places):
        plain, item = Dataset(), Dataset()
        place(plain, matrix, k)
        common = {
            "PlaneOrientationSequence": items(
                ImageOrientationPatient=plain.ImageOrientationPatient
            ),
            "PixelMeasuresSequence": items(
                PixelSpacing=plain.PixelSpacing, SliceThickness=plain.SliceThickness
            ),
        }
        item.PlanePositionSequence = items(ImagePositionPatient=plain.ImagePositionPatient)
        for keyword, value in {**({} if is_shared else common), **groups(frame)}.items():
            setattr(item, keyword, value)
        by_frame.append(item)
    file.SharedFunctionalGroupsSequence = items(**(common if is_shared else {}))
    file.PerFrameFunctionalGroupsSequence = Items(by_frame)
    file.save_as(path, enforce_file_format=True)
    return path
