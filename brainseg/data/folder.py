"""A folder of a cohort with its files, and checks of the folder's entries."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from brainseg.data.naming import is_system, printable
from brainseg.data.volume import Volume, patient_of


@dataclass
class Folder:
    """A volume on disk with its files by slice number, and the faults and warnings about them."""

    path: Path
    slices: dict[int, Path] = field(default_factory=dict)
    masks: dict[int, Path] = field(default_factory=dict)
    # Files that are never opened, such as a link out of the source or a pipe.
    unread: set[Path] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    # Height and width of each readable slice.
    sizes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    # Byte offset of the pixels in each file that contains them uncompressed.
    offsets: dict[Path, int] = field(default_factory=dict)
    # None until the folder has been verified, and if it has a fault.
    volume: Volume | None = None
    # Changes that a reader made to the volume. Equal notes of several volumes are printed once.
    notes: list[str] = field(default_factory=list)
    # The patient that the reader names, or "" if the patient follows from the folder's name.
    named_patient: str = ""

    @property
    def patient(self) -> str:
        return (
            self.volume.patient if self.volume else self.named_patient or patient_of(self.path.name)
        )


def entries_of(folder: Folder) -> list[os.DirEntry]:
    """Return the entries of a folder sorted by name, without system files.

    For a folder that cannot be listed, add a fault and return an empty list.
    """
    try:
        entries = [entry for entry in os.scandir(folder.path) if not is_system(entry.name)]
        return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        folder.faults.append(f"{printable(str(folder.path))}: cannot be listed: {error.strerror}")
        return []


def is_folder(entry: os.DirEntry) -> bool:
    """Return True for a folder or a link to a folder, but not for a link that leads to itself."""
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def leads_outside(entry: os.DirEntry, source: Path) -> bool:
    """Return True for a link to a path outside of `source`."""
    return entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(
        source.resolve()
    )
