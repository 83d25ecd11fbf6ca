"""Duplicate scans in a cohort, with which a split by names would train and test on equal images."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from brainseg.data.readers.kaggle_layout import Folder

# Volumes of different patients share no slice: noise makes each one unique. A fifth tolerates
# slices that are nearly blank.
SHARE = 0.2


def shared_slices(folders: Sequence[Folder]) -> dict[tuple[int, int], int]:
    """Return the number of shared slices of each pair of volumes with many shared slices.

    The key of a pair contains the positions of both volumes in `folders`. A pair is returned if it
    shares a fifth or more of the slices of either volume. Slices are compared pixel by pixel in the
    main channel, as they are and mirrored. Constant slices do not count.
    """
    holders: dict[bytes, list[int]] = defaultdict(list)
    for position, folder in enumerate(folders):
        for key in folder.volume.slice_hashes if folder.volume else ():
            holders[key].append(position)
    counts = Counter(pair for positions in holders.values() for pair in combinations(positions, 2))
    return {
        pair: count
        for pair, count in sorted(counts.items())
        if count >= SHARE * _count_fewest_slices(folders, pair)
    }


def _count_fewest_slices(folders: Sequence[Folder], pair: tuple[int, int]) -> int:
    """Return the number of slices of the smaller volume, without constant slices."""
    return min(
        len(volume.slice_hashes) for position in pair if (volume := folders[position].volume)
    )


def mark_duplicates(folders: Sequence[Folder], together: bool) -> None:
    """Add a fault to each volume whose scan also belongs to an earlier patient.

    If `together`, both volumes become volumes of one patient instead, so that no split separates
    them, and the fault becomes a warning. Two equal volumes of one patient get a warning in either
    case, because the scan counts twice.
    """
    renamed: dict[str, str] = {}
    for (first, second), count in shared_slices(folders).items():
        earlier, later = folders[first], folders[second]
        fewest = _count_fewest_slices(folders, (first, second))
        equal = (
            f"{later.path.name}: {count} of {fewest} slices are also in "
            f"{earlier.path.name}, as they are or mirrored"
        )
        patients = [_resolve_patient(folder.patient, renamed) for folder in (earlier, later)]
        if earlier.patient == later.patient:
            later.warnings.append(
                f"{equal}; both are volumes of {later.patient}, so the scan counts twice"
            )
        elif not together:
            remedy = "remove one, or set on_duplicate=keep_together to make them one patient"
            later.faults.append(f"{equal}; a split would train and test on the same scan; {remedy}")
        else:
            later.warnings.append(f"{equal}; they are kept together as volumes of one patient")
            # The alphabetically first name becomes the name of both patients.
            renamed |= {max(patients): min(patients)} if patients[0] != patients[1] else {}
    for folder in folders:
        if folder.volume and folder.patient in renamed:
            folder.volume = replace(
                folder.volume, patient=_resolve_patient(folder.patient, renamed)
            )


def _resolve_patient(patient: str, renamed: dict[str, str]) -> str:
    """Return the name under which a patient is stored, after all renamings."""
    while patient in renamed:
        patient = renamed[patient]
    return patient
