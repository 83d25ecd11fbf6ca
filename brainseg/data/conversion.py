"""From a folder of slices to the HDF5 file: verify everything, then write, or say why not."""

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
from brainseg.data.fault_report import summarise
from brainseg.data.plausibility import find_doubts
from brainseg.data.readers.base import Reading
from brainseg.data.readers.kaggle_3m import Cohort
from brainseg.data.readers.registry import scanner
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.data.volume import Volume

Item = TypeVar("Item")


class FaultyCohortError(DataError):
    """The source cannot be used. The message is the report with some faults of each kind, `faults` is the whole list."""

    def __init__(self, source: str | Path, faults: list[str]) -> None:
        counted = f"{len(faults):,} fault{'s' if len(faults) > 1 else ''}"
        super().__init__(
            "\n  ".join([f"{source}: {counted}; nothing was written", *summarise(faults)])
        )
        self.faults = faults


@dataclass(frozen=True)
class Summary:
    """What `convert` found and did."""

    written: bool  # False: the file was there already, with this very content
    volumes: list[Volume]
    channels: Sequence[str]
    classes: Sequence[str]
    fingerprint: str
    warnings: list[str]
    ignored: list[str]
    left_out: list[str]  # patients with faults, under on_fault="skip_patient"
    faults: list[str]  # theirs
    reader: str  # by which the source was read


def convert(
    source: str | Path,
    output: str | Path,
    on_fault: str = "error",
    workers: int | None = None,
    progress: bool = False,
    on_duplicate: str = "error",
    reading: Reading | None = None,
) -> Summary:
    """Verify the folder `source`, read as `reading` says, and write it as one HDF5 file; an equal file is left as it is.

    Nothing is written unless every file is sound, or `on_fault="skip_patient"` leaves the patients with faults out. The same scan
    under the names of two patients is a fault of the later one, unless `on_duplicate="keep_together"` makes them one patient.
    Raises RequestError for an unknown reader or a folder without a volume, FaultyCohort with all faults, DataError if the source
    changes meanwhile, OSError if the disk is full.
    """

    def show(items: Iterable[Item], total: int, what: str = "verify") -> Iterable[Item]:
        return tqdm(
            items, what, total, unit="volume", leave=False, disable=None if progress else True
        )  # None: not into a log file

    reader, scan = scanner(source, reading or Reading())
    found = scan(source, workers, show)
    if (
        not found.folders and len(found.faults) == 1
    ):  # nothing there: the wrong folder, no fault of the data
        raise RequestError(f"source={source}: {found.faults[0]}")
    # A scan whose twin is left out is no duplicate, so faulty patients go first.
    cohort = found.without(found.faulty_patients) if on_fault == "skip_patient" else found
    mark_duplicates(cohort.folders, together=on_duplicate == "keep_together")
    cohort = cohort.without(cohort.faulty_patients) if on_fault == "skip_patient" else cohort
    if cohort.faults:
        raise FaultyCohortError(source, found.faults)
    if not cohort.volumes:
        raise FaultyCohortError(source, [*found.faults, "no patient is without a fault"])
    written = not _is_up_to_date(output, cohort)
    if written:
        # Read again in this process: to hand volumes over from workers costs more than it saves, and to keep them costs memory.
        write_store(
            output,
            cohort.volumes,
            show(_load_ahead(cohort), len(cohort.folders), "write"),
            cohort.channels,
            cohort.classes,
            _preparation(reader, reading, cohort),
        )
    left_out = found.faulty_patients if on_fault == "skip_patient" else []
    warnings = [*found.warnings, *find_doubts(cohort.volumes, cohort.classes)]
    return Summary(
        written,
        cohort.volumes,
        cohort.channels,
        cohort.classes,
        cohort.fingerprint,
        warnings,
        found.ignored,
        left_out,
        found.faults,
        reader,
    )


def _load_ahead(cohort: Cohort) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and masks of each volume. The next one is loaded by a thread while HDF5 writes.

    Reading and hashing release Python's lock, so the writing of the file takes half as long.
    """
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(cohort.load, folder) for folder in cohort.folders[:1])
        for folder in cohort.folders[1:]:
            pending.append(pool.submit(cohort.load, folder))
            yield pending.popleft().result()
        yield pending.popleft().result()


def _preparation(reader: str, reading: Reading | None, cohort: Cohort) -> str:
    """Return reader, settings and notes as JSON; "" for slices that are stored as they are."""
    settings = {
        name: value
        for name, value in vars(reading or Reading()).items()
        if value and name != "reader"
    }
    if reader == "kaggle_3m" and not settings:
        return ""
    return json.dumps({"reader": reader, "settings": settings, "notes": cohort.notes}, default=list)


def _is_up_to_date(output: str | Path, cohort: Cohort) -> bool:
    """Whether the file holds this very content and every checksum in it is right."""
    if not Path(output).exists():
        return False
    try:
        with Store(output) as store:
            if store.fingerprint != cohort.fingerprint:  # names, patients and spacing are in it
                return False
            store.verify()
    except DataError:  # damaged or of another version: it is written again
        return False
    return True
