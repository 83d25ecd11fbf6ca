"""Finds the slices and masks of a folder in the `kaggle_3m` layout by their names; opens none of them.

    <source>/<volume>/<volume>_<n>.tif        slice n: height x width x 3, uint8: pre-contrast, FLAIR, post-contrast
    <source>/<volume>/<volume>_<n>_mask.tif   its mask: height x width, uint8, 0/255 or 0/1
    <source>/data.csv                         clinical data; not needed, so not read

A fault is a short line, kept with its volume; a gap in the slice numbers is a warning; other files are ignored, by name.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from brainseg.data.volume import Volume, patient_of

LARGEST_NUMBER = 99_999


@dataclass
class Folder:
    """One volume as found on disk: its files by slice number, and what there is to say of them."""

    path: Path
    slices: dict[int, Path] = field(default_factory=dict)
    masks: dict[int, Path] = field(default_factory=dict)
    unread: set[Path] = field(default_factory=set)  # never opened: a link to elsewhere, a pipe
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    sizes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # (height, width) of each slice that could be read
    volume: Volume | None = None  # there when verified and without a fault
    notes: list[str] = field(default_factory=list)  # what a reader did to the volume; equal ones are printed once
    patient: str = ""  # "": the folder's name without its date

    def __post_init__(self) -> None:
        self.patient = self.patient or patient_of(self.path.name)


def find_folders(top: Folder, need_masks: bool = True) -> list[Folder]:
    """The folders below the source that hold slices, sorted by name; what else there is to say goes to `top`."""
    folders = []
    for entry in _entries(top):
        if not Path(entry.path).is_dir():  # DirEntry's own raises at a link that leads to itself
            top.ignored += [] if entry.name == "data.csv" else [_printable(entry.name)]
            continue
        folder = Folder(Path(entry.path))
        if not entry.name.isprintable():
            folder.faults.append(f"{entry.name!a}: the name holds characters that cannot be printed; rename the folder")
        elif _leads_outside(entry, top.path):
            folder.faults.append(f"{entry.name}: a link that leads outside the source; put the files in its place")
        else:
            find_files(folder, top.path, need_masks)
        if folder.slices or folder.masks or folder.faults:
            folders.append(folder)
        else:
            top.ignored.append(f"{entry.name}/ (holds no {entry.name}_<number>.tif)")
    if not folders and not top.faults:
        inner = [folder for folder in ("kaggle_3m", "lgg-mri-segmentation/kaggle_3m") if (top.path / folder).is_dir()]
        remedy = f"; did you mean {top.path / inner[0]}?" if inner else ""
        top.faults.append(f"no patient found: expected <folder>/<folder>_<number>.tif and <folder>_<number>_mask.tif{remedy}")
    return folders


def find_files(folder: Folder, source: Path, need_masks: bool = True) -> None:
    """Sort the files of a volume into slices and masks, each by number, and see that they pair."""
    name = folder.path.name
    pattern = re.compile(re.escape(name) + r"_([0-9]+)(_mask)?\.tiff?", re.IGNORECASE)
    for entry in _entries(folder):
        match, shown = pattern.fullmatch(entry.name), f"{name}/{_printable(entry.name)}"
        if not match:
            folder.ignored.append(shown)
            continue
        number, files = int(match[1]), folder.masks if match[2] else folder.slices
        if number in files:
            folder.faults.append(f"{shown}: slice number {number} is taken by {files[number].name}")
            continue
        files[number] = Path(entry.path)
        if _leads_outside(entry, source):
            folder.faults.append(f"{shown}: a link that leads outside the source; put the file in its place")
            folder.unread.add(files[number])
        elif not Path(entry.path).is_file():
            folder.faults.append(f"{shown}: not a regular file")
            folder.unread.add(files[number])
    folder.slices, folder.masks = dict(sorted(folder.slices.items())), dict(sorted(folder.masks.items()))
    without = [path for number, path in folder.slices.items() if number not in folder.masks]
    folder.faults += [f"{name}/{path.name}: no mask" for path in without if need_masks]
    folder.faults += [f"{name}/{path.name}: a mask without a slice" for number, path in folder.masks.items() if number not in folder.slices]
    _find_gaps(folder)


def _find_gaps(folder: Folder) -> None:
    last = max(folder.slices, default=0)
    if last > LARGEST_NUMBER:
        folder.faults.append(f"{folder.path.name}/{folder.slices[last].name}: slice number above {LARGEST_NUMBER}")
        return
    gaps = sorted(set(range(1, last)) - set(folder.slices))
    if gaps:
        shown = ", ".join(map(str, gaps[:8])) + (", ..." if len(gaps) > 8 else "")
        folder.warnings.append(f"{folder.path.name}: slices are numbered up to {last}, without {shown}")


def _entries(folder: Folder) -> list[os.DirEntry]:
    """What lies in a folder, by name; one that cannot be listed has that as its fault."""
    try:
        return sorted(os.scandir(folder.path), key=lambda entry: entry.name)
    except OSError as error:
        folder.faults.append(f"{folder.path}: cannot be listed: {error.strerror}")
        return []


def _leads_outside(entry: os.DirEntry, source: Path) -> bool:
    return entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(source.resolve())


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)
