"""The search for the folder that holds the patients' folders, at any depth below a source."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from brainseg.data.folder import Folder, entries_of, is_folder, leads_outside
from brainseg.data.naming import SLICE, is_image, is_system, printable

EXPECTED = "<folder>/<folder>_<number>.tif and <folder>_<number>_mask.tif"


@dataclass
class Tree:
    """The folders below a source, sorted by their content."""

    # Folders of slices by the folder that contains them.
    cohorts: dict[Path, list[Path]] = field(default_factory=dict)
    # Folders that contain a slice with the name of the folder.
    patients: set[Path] = field(default_factory=set)
    # Folders that contain images, of which none has the name of a slice.
    pictures: list[Path] = field(default_factory=list)
    # Folders that cannot be entered.
    faulty: list[Folder] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def collect_folders(folder: Folder, top: Folder, tree: Tree) -> bool:
    """Add a folder and all folders below it to `tree`.

    Returns True if any of them contains an image.
    """
    entries = entries_of(folder)
    names = [entry.name for entry in entries if not is_folder(entry)]
    has_images = folder is not top and any(map(is_image, names))
    slices = [match["volume"].casefold() for match in map(SLICE.fullmatch, names) if match]
    if has_images and slices:
        tree.cohorts.setdefault(folder.path.parent, []).append(folder.path)
        tree.patients |= {folder.path} if folder.path.name.casefold() in slices else set()
    elif has_images:
        tree.pictures.append(folder.path)
    else:
        place = "" if folder is top else f"{folder.path.relative_to(top.path)}/"
        tree.ignored += [printable(f"{place}{name}") for name in names if name != "data.csv"]
    # A link within the source may lead to a folder above it, so the folders behind a link are not
    # searched.
    below = [] if folder is not top and folder.path.is_symlink() else filter(is_folder, entries)
    for entry in below:
        has_images = _enter(entry, top, tree) or has_images
    return has_images


def _enter(entry: os.DirEntry, top: Folder, tree: Tree) -> bool:
    """Add the folder behind an entry and all folders below it to `tree`.

    Returns True if any of them contains an image.
    """
    folder = Folder(Path(entry.path))
    has_images = False
    if entry.is_symlink() and Path(os.path.realpath(folder.path.parent)).is_relative_to(
        os.path.realpath(folder.path)
    ):
        tree.ignored.append(
            f"{printable(str(folder.path.relative_to(top.path)))} (a link to a folder above it)"
        )
        return False
    if not entry.name.isprintable():
        rule = "the name holds characters that cannot be printed, or bytes that are not UTF-8"
        folder.faults.append(f"{entry.name!a}: {rule}; rename the folder")
    elif leads_outside(entry, top.path):
        folder.faults.append(
            f"{entry.name}: a link that leads outside the source; put the files in its place"
        )
    else:
        has_images = collect_folders(folder, top, tree)
    if folder.faults:
        tree.faulty.append(folder)
    elif not has_images:
        tree.ignored.append(f"{folder.path.relative_to(top.path)}/ (holds no image)")
    return has_images


def describe_several_cohorts(tree: Tree, source: Path) -> str:
    """Return the message for a source whose patients' folders lie in more than one folder.

    The public archive, for example, contains two copies of the cohort.
    """
    places = [f"{path} ({len(folders)})" for path, folders in sorted(tree.cohorts.items())]
    more = f" and {len(places) - 3} more places" if len(places) > 3 else ""
    rule = f"folders of slices lie in different places: {', '.join(places[:3])}{more}"
    return (
        f"{printable(rule)}; give one of them as source, or move the others out of "
        f"{printable(str(source))}"
    )


def describe_absence(tree: Tree, source: Path) -> str:
    """Return the fault of a source without a patient, with an example of its images."""
    loose = [name for name in tree.ignored if is_image(name)]
    if any(SLICE.fullmatch(Path(name).name) for name in loose):
        return (
            f"no patient's folder: the slices, such as {loose[0]}, lie in the source "
            "itself; give the folder above it"
        )
    examples = [
        name
        for path in tree.pictures
        for name in sorted(os.listdir(path))
        if is_image(name) and not is_system(name)
    ]
    names = [printable(name) for name in examples + loose]
    other_images = (
        f"; its images have other names, such as {names[0]}: rename them, or choose another reader"
        if names
        else ""
    )
    return f"no patient found: expected {EXPECTED}{other_images}"
