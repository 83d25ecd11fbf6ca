"""Conversion of a source folder to one HDF5 file, written only if all data are sound."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from brainseg.core.errors import DataError, RequestError
from brainseg.data.duplicates import mark_duplicates
from brainseg.data.fault_report import summarise_faults
from brainseg.data.plausibility import find_doubts
from brainseg.data.readers.base import Reading
from brainseg.data.readers.kaggle_3m import Cohort
from brainseg.data.readers.registry import choose_scanner
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.data.volume import Volume

Item = TypeVar("Item")


class FaultyCohortError(DataError):
    """Error for a source that cannot be used.

    The message reports some faults of each kind. The attribute `faults` is the complete list.
    """

    def __init__(self, source: str | Path, faults: list[str]) -> None:
        counted = f"{len(faults):,} fault{'s' if len(faults) > 1 else ''}"
        super().__init__(
            "\n  ".join([f"{source}: {counted}; nothing was written", *summarise_faults(faults)])
        )
        self.faults = faults


@dataclass(frozen=True)
class ConversionSummary:
    """Content of a source and the outcome of its conversion."""

    # False if the file already existed with the same content.
    written: bool
    volumes: list[Volume]
    channels: Sequence[str]
    classes: Sequence[str]
    fingerprint: str
    warnings: list[str]
    ignored: list[str]
    # Patients with faults, under on_fault="skip_patient".
    left_out: list[str]
    # The faults of those patients.
    faults: list[str]
    # Name of the reader that read the source.
    reader: str


def convert(
    source: str | Path,
    output: str | Path,
    on_fault: str = "error",
    workers: int | None = None,
    progress: bool = False,
    on_duplicate: str = "error",
    reading: Reading | None = None,
) -> ConversionSummary:
    """Verify the folder `source` and write it as one HDF5 file.

    `reading` contains the settings of the reader. A file at `output` with the same content is left
    as it is. Nothing is written unless every file is sound, or `on_fault="skip_patient"` leaves out
    the patients with faults. The same scan under the names of two patients is a fault of the later
    patient, unless `on_duplicate="keep_together"` makes them one patient.

    Raises RequestError for an unknown reader or a folder without a volume, FaultyCohortError with
    all faults, DataError if the source changes during the conversion, OSError if the disk is full.
    """

    def show(items: Iterable[Item], total: int, step: str = "verify") -> Iterable[Item]:
        # With disable=None tqdm shows the bar on a terminal only, not in a log file.
        disable = None if progress else True
        return tqdm(items, step, total, unit="volume", leave=False, disable=disable)

    reader, scan = choose_scanner(source, reading or Reading())
    source_cohort = scan(source, workers, show)
    # A source without any volume is the wrong folder, which is an error of the request.
    if not source_cohort.folders and len(source_cohort.faults) == 1:
        raise RequestError(f"source={source}: {source_cohort.faults[0]}")
    skips_patients = on_fault == "skip_patient"
    # A scan whose copy is left out is no duplicate, so faulty patients are removed first.
    cohort = (
        source_cohort.without(source_cohort.faulty_patients) if skips_patients else source_cohort
    )
    mark_duplicates(cohort.folders, together=on_duplicate == "keep_together")
    cohort = cohort.without(cohort.faulty_patients) if skips_patients else cohort
    if cohort.faults:
        raise FaultyCohortError(source, source_cohort.faults)
    if not cohort.volumes:
        raise FaultyCohortError(source, [*source_cohort.faults, "no patient is without a fault"])
    written = not _is_up_to_date(output, cohort)
    if written:
        # This process reads the source again. Passing volumes from the workers would cost more time
        # than it saves, and keeping them would cost memory.
        write_store(
            output,
            cohort.volumes,
            show(_load_ahead(cohort), len(cohort.folders), "write"),
            cohort.channels,
            cohort.classes,
            _preparation(reader, reading, cohort),
        )
    left_out = source_cohort.faulty_patients if skips_patients else []
    warnings = [*source_cohort.warnings, *find_doubts(cohort.volumes, cohort.classes)]
    return ConversionSummary(
        written,
        cohort.volumes,
        cohort.channels,
        cohort.classes,
        cohort.fingerprint,
        warnings,
        source_cohort.ignored_files,
        left_out,
        source_cohort.faults,
        reader,
    )


def _load_ahead(cohort: Cohort) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and masks of each volume, while a thread loads the next volume.

    Reading and hashing release Python's lock during the writes of HDF5, so the file is written in
    half the time.
    """
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(cohort.load, folder) for folder in cohort.folders[:1])
        for folder in cohort.folders[1:]:
            pending.append(pool.submit(cohort.load, folder))
            yield pending.popleft().result()
        yield pending.popleft().result()


def _preparation(reader: str, reading: Reading | None, cohort: Cohort) -> str:
    """Return reader, settings and notes as JSON, or "" if slices are stored unchanged."""
    settings = {
        name: value
        for name, value in vars(reading or Reading()).items()
        if value and name != "reader"
    }
    if reader == "kaggle_3m" and not settings:
        return ""
    return json.dumps({"reader": reader, "settings": settings, "notes": cohort.notes}, default=list)


def _is_up_to_date(output: str | Path, cohort: Cohort) -> bool:
    """Return True if the file contains this cohort and all its checksums are correct."""
    if not Path(output).exists():
        return False
    try:
        with Store(output) as store:
            # The fingerprint includes names, patients and spacing. Files of earlier versions lack
            # the properties of the heads.
            if store.fingerprint != cohort.fingerprint or store.head_box is None:
                return False
            store.verify()
    except DataError:
        # A file that is damaged or of another version is written again.
        return False
    return True
