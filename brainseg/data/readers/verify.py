"""Verification and loading of the volumes that a reader lists, in several processes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.core.errors import DataError, shorten_error
from brainseg.data.folder import Folder
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import (
    Reader,
    Reading,
    Scan,
    check_images,
    check_masks,
    list_some,
    require,
)
from brainseg.data.readers.fit import resample_and_crop
from brainseg.data.readers.kaggle_3m import Cohort, Show, compare_sizes, in_processes
from brainseg.data.readers.kaggle_layout import LARGEST_NUMBER
from brainseg.data.volume import UNKNOWN, compute_volume_stats, digest

UNCHANGED = Reading()


def scan_volumes(
    reader: Reader,
    source: str | Path,
    workers: int | None = None,
    show: Show | None = None,
    reading: Reading = UNCHANGED,
) -> Cohort:
    """Read and verify every volume in `workers` processes, by default one per core.

    Faults are collected in the cohort and not raised.
    """
    top = Folder(Path(source))
    patients = getattr(reader, "patients", {})
    names = _names(reader, top)
    folders = [Folder(top.path / name, named_patient=patients.get(name, "")) for name in names]
    verified = in_processes(partial(verify_volume, reader, reading=reading), folders, workers)
    folders = list(show(verified, len(folders)) if show else verified)
    compare_sizes(folders)
    # The protocol does not require these attributes, and only some readers have them.
    notes = [*getattr(reader, "notes", ()), *_group_notes(folders)]
    top.ignored += getattr(reader, "ignored", ())
    classes = tuple(reader.classes)
    if hasattr(reader, "name_classes"):
        pixels = sum(
            (folder.volume.class_pixels for folder in folders if folder.volume),
            np.zeros(256, np.int64),
        )
        classes, renamed = reader.name_classes(pixels)
        notes += renamed
    top.warnings += notes
    return Cohort(
        top,
        folders,
        partial(load_volume, reader, reading=reading),
        tuple(reader.channels),
        classes,
        notes,
    )


def _names(reader: Reader, top: Folder) -> list[str]:
    """Return the sorted names of the volumes, and add the faults of names to `top`."""
    try:
        names = sorted(map(str, reader.volumes(top.path)))
    # The code of another package may raise any exception.
    except Exception as error:
        top.faults.append(f"{top.path}: its volumes cannot be listed: {_reason(error)}")
        return []
    invalid_names = [name for name in names if not name.isprintable() or Path(name).name != name]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    top.faults += [
        f"{name!a}: no name for a volume: it must be printable and without a slash"
        for name in invalid_names
    ]
    top.faults += [f"{name}: listed more than once" for name in duplicates]
    if not names:
        top.faults.append(f"{top.path}: {type(reader).__name__} finds no volume there")
    return [] if invalid_names or duplicates else names


def _group_notes(folders: Sequence[Folder]) -> list[str]:
    """Return each different note of the volumes once, with the names of its volumes."""
    names_by_note: dict[str, list[str]] = {}
    for folder in folders:
        for note in folder.notes:
            names_by_note.setdefault(note, []).append(folder.path.name)
    return [f"{list_some(names)}: {note}" for note, names in names_by_note.items()]


def verify_volume(reader: Reader, folder: Folder, reading: Reading = UNCHANGED) -> Folder:
    """Read a volume and add its faults, notes and size, and its statistics if there is no fault."""
    name = folder.path.name
    try:
        numbers, scan = _read(reader, folder, reading)
    except DataError as error:
        text = str(error)
        folder.faults.append(text if text.startswith(f"{name}/") else f"{name}: {text}")
        return folder
    folder.named_patient = scan.patient or folder.named_patient
    folder.notes += scan.notes
    # All slices of an array have one size, so a single entry stands for the volume.
    folder.sizes[0] = scan.images.shape[2:]
    slices = zip(numbers, scan.images, scan.masks, strict=True)
    folder.volume = compute_volume_stats(
        name, slices, reader.channels, scan.spacing or UNKNOWN, folder.named_patient
    )
    return folder


def load_volume(
    reader: Reader, folder: Folder, reading: Reading = UNCHANGED
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (S, C, H, W) and class indices (S, 1, H, W), uint8, of a verified volume.

    Raises DataError if the volume has changed since it was verified.
    """
    volume = folder.volume
    assert volume is not None, "only a verified volume without faults can be loaded"
    numbers, scan = _read(reader, folder, reading)
    slices = zip(numbers, scan.images, scan.masks, strict=True)
    if digest(volume.name, slices, scan.spacing or UNKNOWN) != volume.digest:
        raise DataError(f"{folder.path}: changed while it was being read; start again")
    return scan.images, scan.masks[:, None]


def _read(reader: Reader, folder: Folder, reading: Reading) -> tuple[list[int], Scan]:
    """Return slice numbers and a checked scan of images (S, C, H, W) and masks (S, H, W), uint8.

    Raises DataError naming the fault.
    """
    try:
        scan = Scan(*reader.read(folder.path.parent, folder.path.name))
        images, masks = np.asarray(scan.images), np.asarray(scan.masks)
        spacing: Sequence[float] = (
            UNKNOWN if scan.spacing is None else tuple(map(float, scan.spacing))
        )
        numbers = list(range(1, len(images) + 1))
        if scan.slice_number is not None:
            numbers = [int(number) for number in scan.slice_number]
        _check_patient(scan.patient)
    except DataError as error:
        # Messages name files relative to the source.
        raise DataError(str(error).replace(f"{folder.path.parent}/", "")) from error
    # The code of another package, and the libraries that it uses, may raise any exception.
    except Exception as error:
        raise DataError(f"cannot be read: {_reason(error)}") from error
    check_images(images, reader.channels)
    check_masks(masks, images, reader.classes)
    fits = len(numbers) == len(images) and numbers == sorted(set(numbers))
    fits = fits and numbers[0] >= 0 and numbers[-1] <= LARGEST_NUMBER
    rule = f"must rise, one per slice, from 0 or more up to {LARGEST_NUMBER}"
    require(fits, f"slice numbers {numbers[:5]}...: {rule}")
    is_length = len(spacing) == 3 and (
        spacing is UNKNOWN or all(0 < side < 1e6 for side in spacing)
    )
    require(
        is_length,
        f"spacing {spacing}: must be three lengths in mm (slices, rows, columns), or None",
    )
    notes = [*scan.notes, *_find_black_slices(images, masks, numbers, reader.channels)]
    # Images are stretched before they are cropped or padded, so that a border does not move the
    # percentiles.
    images, masks = to_uint8(images), masks.astype(np.uint8)
    images, masks, spacing, fit_notes = resample_and_crop(
        images, masks, spacing, reading.spacing, reading.size
    )
    return numbers, Scan(images, masks, spacing, numbers, scan.patient, [*notes, *fit_notes])


def _find_black_slices(
    images: np.ndarray, masks: np.ndarray, numbers: Sequence[int], channels: Sequence[str]
) -> list[str]:
    """Return a note for each channel without signal in some slices with tumour.

    Raises DataError for slices with tumour in which no channel has any signal.
    """
    with_tumour = np.asarray(masks.any(axis=(1, 2)))
    # True (S, C) for slices of a channel in which every pixel is equal.
    flat = np.asarray(images.max(axis=(2, 3)) == images.min(axis=(2, 3)))
    is_black = with_tumour & flat.all(axis=1)
    black = [
        number for number, has_no_signal in zip(numbers, is_black, strict=True) if has_no_signal
    ]
    remedy = "the image is damaged or the mask belongs to another scan"
    require(
        not black,
        f"slices {list_some(black)} hold a mask and no image, every pixel is equal; {remedy}",
    )
    flat_counts = (with_tumour[:, None] & flat).sum(axis=0)
    is_constant = np.asarray(flat.all(axis=0))
    # A channel that is flat in every slice gets no note here.
    return [
        f"{channel} has no signal in slices that hold a mask"
        for channel, count, constant in zip(channels, flat_counts, is_constant, strict=True)
        if count and not constant
    ]


def _check_patient(patient: Any) -> None:
    """Raise DataError unless a patient is None or a printable name."""
    is_name = patient is None or (
        isinstance(patient, str) and patient != "" and patient.isprintable()
    )
    require(is_name, f"patient {patient!r}: must be a printable name, or None")


def _reason(error: Exception) -> str:
    """Return the type of an exception and its message in one line."""
    return f"{type(error).__name__}: {shorten_error(error, 300)}"
