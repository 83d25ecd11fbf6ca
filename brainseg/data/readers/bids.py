"""Reader of datasets in the Brain Imaging Data Structure (BIDS).

Masks lie in derivatives or beside the images. Images lie in sub-LABEL/[ses-LABEL/]anat.
A volume is a session, such as `sub-01_ses-02`, and its patient is the subject, `sub-01`. See
https://bids.neuroimaging.io.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from brainseg.core.errors import DataError, check
from brainseg.data.readers.base import Reading, list_some
from brainseg.data.readers.case import Case, CaseReader, ImageFile
from brainseg.data.readers.guess import sequence_of
from brainseg.data.readers.labels import Labels, parse_classes
from brainseg.data.readers.patterns import list_files

SUFFIXES = (".nii", ".nii.gz")
MASKS = ("dseg", "mask")
# Values of desc or label for masks of the whole head and of tissues. These masks come from
# preprocessing and show no tumour.
BRAIN = ("brain", "head", "GM", "WM", "CSF")


def entities_of(path: str) -> tuple[dict[str, str], str]:
    """Return the entities and the suffix of a name, {sub: 01} and T1w for sub-01_T1w.nii.gz."""
    *pairs, suffix = path.rpartition("/")[2].partition(".")[0].split("_")
    return dict(pair.split("-", 1) for pair in pairs if "-" in pair), suffix


def is_dataset(source: Path) -> bool:
    """Return True if a folder sub-LABEL, or a session in it, contains the folder anat."""
    return any(source.glob("sub-*/anat")) or any(source.glob("sub-*/ses-*/anat"))


def make_reader(source: Path, reading: Reading, keeps_rare: bool = False) -> CaseReader:
    """Return the reader of a dataset.

    Sequences of few volumes are left out unless `keeps_rare`. Raises RequestError if the dataset
    contains no images, or if a pattern of `sequences` or `mask` matches no file.
    """
    images: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    masks: dict[str, list[str]] = defaultdict(list)
    ignored = []
    for path in list_files(source, SUFFIXES):
        entities, suffix = entities_of(path)
        volume = _volume_of(entities)
        is_raw = path.startswith("sub-") and "/anat/" in path
        if "sub" not in entities:
            ignored.append(path)
        elif _is_mask(path, entities, suffix, reading.mask):
            masks[volume].append(path)
        elif is_raw and (name := _sequence_of(path, entities, suffix, reading.sequences)):
            images[volume][name].append(path)
        else:
            ignored.append(path)
    check(
        bool(images),
        "source",
        source,
        "holds no image in sub-*/anat or sub-*/ses-*/anat",
        "see docs/own_data.md",
    )
    rule = "matches no file of the source"
    remedy = "give part of the masks' names, such as '*_dseg.nii.gz'"
    check(reading.mask is None or bool(masks), "mask", reading.mask, rule, remedy)
    channels, notes = _channels(images, reading.sequences, keeps_rare)
    cases = [
        _case(source, volume, images[volume], masks[volume], channels) for volume in sorted(images)
    ]
    table = _table_of(source)
    labels = parse_classes(reading.classes) if reading.classes else _labels_of(table)
    return CaseReader(cases, channels, labels, reading.onto, notes, ignored, table)


def _volume_of(entities: Mapping[str, str]) -> str:
    """Return the name of a session's volume, sub-01_ses-02, or sub-01 without sessions."""
    return "_".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)


def _is_mask(path: str, entities: Mapping[str, str], suffix: str, pattern: str | None) -> bool:
    """Return True for a mask of tumour, by the pattern if given, else by the name."""
    if pattern is not None:
        return _fits(path, pattern)
    about_brain = {entities.get("desc"), entities.get("label")} & set(BRAIN)
    return suffix in MASKS and not about_brain


def _sequence_of(
    path: str, entities: Mapping[str, str], suffix: str, sequences: Mapping[str, str]
) -> str | None:
    """Return the sequence of an image, by the patterns if given, else by suffix and agent."""
    if sequences:
        return next(
            (name for name, pattern in sequences.items() if _fits(path, str(pattern))), None
        )
    # The entity ce names a contrast agent.
    name = sequence_of(suffix)
    return f"{name}c" if name == "T1" and "ce" in entities else name


def _fits(path: str, pattern: str) -> bool:
    """Return True if a pattern fits a path, or its file name where the pattern has no folder."""
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _channels(
    images: Mapping[str, Mapping[str, Sequence[str]]],
    sequences: Mapping[str, str],
    keeps_rare: bool,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the sequences that at least half of the volumes have, and a note on rarer ones.

    All sequences are returned if `keeps_rare`.
    """
    counts = {
        name: sum(name in files for files in images.values())
        for name in ("FLAIR", "T1", "T1c", "T2", *sequences)
    }
    if sequences:
        for name, pattern in sequences.items():
            check(
                counts[name] > 0,
                f"sequences.{name}",
                pattern,
                "matches no image",
                "as '*_acq-3D_T1w.nii.gz'",
            )
        return tuple(sequences), []
    if keeps_rare:
        return tuple(name for name, count in counts.items() if count), []
    # The channel of a rare sequence would be a copy of FLAIR for most patients.
    usual = tuple(name for name, count in counts.items() if 2 * count >= len(images))
    rare = [
        f"{name} (in {count} of {len(images)})"
        for name, count in counts.items()
        if count and name not in usual
    ]
    check(
        bool(usual),
        "source",
        f"{len(images)} volumes",
        "have no sequence in common",
        "select them by patterns, as sequences.FLAIR=PATTERN",
    )
    return usual, [
        f"too rare for a channel: {', '.join(rare)}; select them by sequences.NAME=PATTERN"
    ] if rare else []


def _case(
    source: Path,
    volume: str,
    images: Mapping[str, Sequence[str]],
    masks: Sequence[str],
    channels: Sequence[str],
) -> Case:
    """Return the case of a session, with a fault for each sequence that has several files."""
    faults = [
        f"{len(paths)} images are {name}: {list_some(paths, 3)}; "
        f"choose by sequences.{name}='*_PART_*'"
        for name, paths in images.items()
        if name in channels and len(paths) > 1
    ]
    mask_fault = (
        f"{len(masks)} masks: {list_some(masks, 3)}; choose by mask='*_desc-NAME_mask.nii.gz'"
    )
    files = {name: ImageFile(source / images[name][0]) for name in channels if name in images}
    mask = ImageFile(source / masks[0]) if masks else None
    mask_faults = (mask_fault,) if len(masks) > 1 else ()
    return Case(volume, volume.partition("_")[0], files, mask, tuple(faults), mask_faults)


def _table_of(source: Path) -> Path | None:
    """Return the dataset's table of labels, `*dseg.tsv`, None if it has no table."""
    tables = sorted([*source.glob("derivatives/**/*dseg.tsv"), *source.glob("*dseg.tsv")])
    return tables[0] if tables else None


def _labels_of(table: Path | None) -> Labels:
    """Return the classes of a table of labels, or a single class without a table.

    Raises DataError for a table that cannot be read.
    """
    if table is None:
        return Labels()
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        return parse_classes({row["name"]: int(row["index"]) for row in rows if int(row["index"])})
    except (KeyError, TypeError, ValueError) as error:
        reason = "needs columns index and name, with whole numbers and plain names"
        raise DataError(f"{table}: {reason}; correct it, or give classes") from error
