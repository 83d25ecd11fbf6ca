"""Layout `kaggle_3m`, whose slices and masks are found by their names. No file is opened.

    <cohort>/<volume>/<volume>_<n>.tif        slice n, RGB: pre-contrast, FLAIR, post-contrast
    <cohort>/<volume>/<volume>_<n>_mask.tif   its mask, grey: 0 and 255, or 0 and 1
    <cohort>/data.csv                         clinical data, not needed and not read

The cohort is the source, or a folder below it. A fault is a short line that is stored with its
volume. A gap in the slice numbers is a warning. Hidden and system files are skipped. An image under
another name is a fault, other files are ignored.
"""

import re
from pathlib import Path

from brainseg.data.folder import Folder, entries_of, is_folder, leads_outside
from brainseg.data.naming import SLICE, describe_misnamed, is_image, printable
from brainseg.data.tree import Tree, collect_folders, describe_absence, describe_several_cohorts

LARGEST_NUMBER = 99_999


def find_folders(top: Folder, need_masks: bool = True) -> list[Folder]:
    """Return the volumes of the only cohort at or below the source, sorted by name.

    Remarks that concern no volume are added to the faults, warnings and ignored names of `top`. If
    nothing can be used, the list is empty and `top` has one fault.
    """
    tree = Tree()
    collect_folders(top, top, tree)
    if top.faults:
        return []
    # A stray slice beside the patients' folders does not make their parent folder a patient.
    above = tree.cohorts.keys() - tree.patients
    patients = {
        cohort: [path for path in paths if path not in above]
        for cohort, paths in tree.cohorts.items()
    }
    tree.cohorts = {cohort: paths for cohort, paths in patients.items() if paths}
    if len(tree.cohorts) != 1 and (tree.cohorts or not tree.faulty):
        top.faults.append(
            describe_several_cohorts(tree, top.path)
            if tree.cohorts
            else describe_absence(tree, top.path)
        )
        return []
    cohort = next(iter(tree.cohorts), top.path)
    folders = list(tree.faulty)
    for path in [
        *tree.cohorts.get(cohort, ()),
        *(path for path in tree.pictures if path.parent == cohort),
    ]:
        folder = Folder(path)
        find_files(folder, top.path, need_masks)
        folders.append(folder)
    _add_remarks(top, tree, cohort)
    return sorted(folders, key=lambda folder: folder.path.name)


def _add_remarks(top: Folder, tree: Tree, cohort: Path) -> None:
    """Add remarks on other files of the source to `top`.

    A slice beside the patients' folders is a fault. Folders of other images are warnings, and other
    files are ignored.
    """
    names = [entry.name for entry in entries_of(Folder(cohort)) if not is_folder(entry)]
    rule = "a slice that lies beside the patients' folders; put it into the folder of its patient"
    top.faults += [f"{printable(name)}: {rule}" for name in names if SLICE.fullmatch(name)]
    top.warnings += [
        f"{path.relative_to(top.path)}/: its images are not read, as it does not lie "
        "beside the patients' folders"
        for path in tree.pictures
        if cohort not in (path, path.parent)
    ]
    top.ignored += [name for name in tree.ignored if not SLICE.fullmatch(name)]
    if cohort in tree.pictures:
        top.ignored += [
            printable(name) for name in names if name != "data.csv" and not SLICE.fullmatch(name)
        ]


def find_files(folder: Folder, source: Path, need_masks: bool = True) -> None:
    """Sort the files of a volume into slices and masks by number, and check that they pair."""
    name = folder.path.name
    pattern = re.compile(re.escape(name) + r"_([0-9]+)(_mask)?\.tiff?", re.IGNORECASE)
    other_images = []
    for entry in entries_of(folder):
        match, place = pattern.fullmatch(entry.name), f"{name}/{printable(entry.name)}"
        if not match:
            other_images += [entry.name] if is_image(entry.name) and not is_folder(entry) else []
            folder.ignored += [] if is_image(entry.name) or is_folder(entry) else [place]
            continue
        number, files = int(match[1]), folder.masks if match[2] else folder.slices
        if number in files:
            folder.faults.append(f"{place}: slice number {number} is taken by {files[number].name}")
            continue
        files[number] = Path(entry.path)
        if leads_outside(entry, source):
            folder.faults.append(
                f"{place}: a link that leads outside the source; put the file in its place"
            )
            folder.unread.add(files[number])
        elif not Path(entry.path).is_file():
            folder.faults.append(f"{place}: not a regular file")
            folder.unread.add(files[number])
    folder.faults += describe_misnamed(
        folder.path, other_images, has_slices=bool(folder.slices or folder.masks)
    )
    folder.slices = dict(sorted(folder.slices.items()))
    folder.masks = dict(sorted(folder.masks.items()))
    unpaired = [path for number, path in folder.slices.items() if number not in folder.masks]
    folder.faults += [f"{name}/{path.name}: no mask" for path in unpaired if need_masks]
    orphans = [path for number, path in folder.masks.items() if number not in folder.slices]
    folder.faults += [f"{name}/{path.name}: a mask without a slice" for path in orphans]
    _find_gaps(folder)


def _find_gaps(folder: Folder) -> None:
    """Add a warning for missing slice numbers between 1 and the last slice.

    A number above `LARGEST_NUMBER` is a fault.
    """
    last = max(folder.slices, default=0)
    if last > LARGEST_NUMBER:
        place = f"{folder.path.name}/{folder.slices[last].name}"
        folder.faults.append(f"{place}: slice number above {LARGEST_NUMBER}")
        return
    gaps = sorted(set(range(1, last)) - set(folder.slices))
    if gaps:
        gap_list = ", ".join(map(str, gaps[:8])) + (", ..." if len(gaps) > 8 else "")
        folder.warnings.append(
            f"{folder.path.name}: slices are numbered up to {last}, without {gap_list}"
        )
