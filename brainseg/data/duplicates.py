"""Scans that are in a cohort twice. A split by names would train and test on the same images."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from brainseg.data.readers.kaggle_layout import Folder

# Volumes of different patients share no slice: noise makes each one unique. A fifth tolerates
# slices that are nearly blank.
SHARE = 0.2


def shared_slices(folders: Sequence[Folder]) -> dict[tuple[int, int], int]:
    """Return the number of slices that two volumes share, by their positions in `folders`, if it is
    a fifth or more of either.

    Slices are compared pixel by pixel in the main channel, as they are and mirrored. Constant
    slices do not count.
    """
    holders: dict[bytes, list[int]] = defaultdict(list)
    for position, folder in enumerate(folders):
        for key in folder.volume.slice_hashes if folder.volume else ():
            holders[key].append(position)
    counts = Counter(pair for positions in holders.values() for pair in combinations(positions, 2))
    return {
        pair: count
        for pair, count in sorted(counts.items())
        if count >= SHARE * _fewest(folders, pair)
    }


def _fewest(folders: Sequence[Folder], pair: tuple[int, int]) -> int:
    """Return the number of slices of the smaller volume, without those that are constant."""
    return min(
        len(volume.slice_hashes) for position in pair if (volume := folders[position].volume)
    )


def mark_duplicates(folders: Sequence[Folder], together: bool) -> None:
    """Add a fault to the later of two volumes that hold the same scan and are of different
    patients.

    If `together`, they become volumes of one patient instead, so that no split parts them, and the
    fault becomes a warning. Two equal volumes of one patient are a warning in either case: they
    count twice.
    """
    renamed: dict[str, str] = {}
    for (first, second), count in shared_slices(folders).items():
        earlier, later = folders[first], folders[second]
        fewest = _fewest(folders, (first, second))
        equal = (
            f"{later.path.name}: {count} of {fewest} slices are also in "
            f"{earlier.path.name}, as they are or mirrored"
        )
        patients = [_resolved(folder.patient, renamed) for folder in (earlier, later)]
        if earlier.patient == later.patient:
            later.warnings.append(
                f"{equal}; both are volumes of {later.patient}, so the scan counts twice"
            )
        elif not together:
            remedy = "remove one, or set on_duplicate=keep_together to make them one patient"
            later.faults.append(f"{equal}; a split would train and test on the same scan; {remedy}")
        else:
            later.warnings.append(f"{equal}; they are kept together as volumes of one patient")
            renamed |= {max(patients): min(patients)} if patients[0] != patients[1] else {}
    for folder in folders:
        if folder.volume and folder.patient in renamed:
            folder.volume = replace(folder.volume, patient=_resolved(folder.patient, renamed))


def _resolved(patient: str, renamed: dict[str, str]) -> str:
    """Return the name under which a patient is stored, following the renamings to their end."""
    while patient in renamed:
        patient = renamed[patient]
    return patient
