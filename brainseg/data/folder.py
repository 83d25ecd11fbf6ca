"""One folder of a cohort with its files, and what the file system says of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from brainseg.data.naming import is_system, printable
from brainseg.data.volume import Volume, patient_of


@dataclass
class Folder:
    """One volume on disk: its files by slice number, and the faults and warnings about them."""

    path: Path
    slices: dict[int, Path] = field(default_factory=dict)
    masks: dict[int, Path] = field(default_factory=dict)
    unread: set[Path] = field(default_factory=set)  # never opened: a link to elsewhere, a pipe
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    # Height and width of each readable slice.
    sizes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    # Where the pixels begin in a file that holds them uncompressed.
    offsets: dict[Path, int] = field(default_factory=dict)
    volume: Volume | None = None  # there when verified and without a fault
    notes: list[str] = field(
        default_factory=list
    )  # what a reader did to the volume; equal ones are printed once
    named_patient: str = ""  # by the reader, "" if the patient follows from the folder's name

    @property
    def patient(self) -> str:
        return (
            self.volume.patient if self.volume else self.named_patient or patient_of(self.path.name)
        )


def entries_of(folder: Folder) -> list[os.DirEntry]:
    """Return the content of a folder by name without system files.

    A folder that cannot be listed has that as its fault.
    """
    try:
        entries = [entry for entry in os.scandir(folder.path) if not is_system(entry.name)]
        return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        folder.faults.append(f"{printable(str(folder.path))}: cannot be listed: {error.strerror}")
        return []


def is_folder(entry: os.DirEntry) -> bool:
    """Return True for a folder or a link to one. A link that leads to itself is a file."""
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def leads_outside(entry: os.DirEntry, source: Path) -> bool:
    return entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(
        source.resolve()
    )
