"""Cohorts of image files below a folder, listed by the readers of `prepare`.

The layouts are nnU-Net and the Decathlon, BIDS, BraTS, and one file per sequence with patterns of
names. Masks may be absent. `dicom_cohort` lists the DICOM series of several patients.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError, RequestError, check
from brainseg.data.cases.assignment import letters_and_digits, normalize_case
from brainseg.data.cases.cohort_case import CohortCase, FaultyCase
from brainseg.data.cases.cohort_layout import find_reader
from brainseg.data.cases.input_case import InputCase, check_sequences, make_case
from brainseg.data.imageio.open import open_image
from brainseg.data.readers.base import list_some
from brainseg.data.readers.case import Case, CaseReader
from brainseg.data.readers.guess import sequence_of
from brainseg.data.readers.labels import Labels

# Names of the T1-weighted sequences in the public set, and the names that readers give them.
ALIASES = {"precontrast": "T1", "postcontrast": "T1c"}


def find_cohort(
    path: Path,
    sequences: Mapping[str, str],
    channels: Sequence[str],
    classes: Sequence[str],
    volume: int | None = None,
) -> list[InputCase]:
    """Return the cases of a cohort below `path`, an empty list if it holds no cohort.

    `channels` and `classes` are those of the checkpoint. A case that cannot be read is returned as
    a `FaultyCase`. Raises RequestError if no case can be read, or if no sequence is known.
    """
    try:
        reader = find_reader(path, sequences, channels)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror})") from error
    if reader is None:
        return []
    if sequences:
        check_sequences(list(sequences), channels)
    names = _names_by_channel(path, reader.channels, channels)
    labels, notes = _labels_for(reader, classes)
    unused_sequences = [name for name in reader.channels if name not in names.values()]
    if unused_sequences:
        notes.append(
            f"{list_some(unused_sequences)} ignored: the checkpoint takes {', '.join(channels)}"
        )
    cases = [
        _make_input_case(reader, case, names, channels, labels, volume, notes)
        for case in reader.cases
    ]
    refuse_faulty(path, cases)
    return cases


def refuse_faulty(path: Path, cases: Sequence[InputCase]) -> None:
    """Raise RequestError with the problem of the first case if no case can be read."""
    problems = [case.problem for case in cases if isinstance(case, FaultyCase)]
    if problems and len(problems) == len(cases):
        first = f"{cases[0].name}: {problems[0]}"
        more = (
            f"; {len(problems) - 1} more cases cannot be read either" if len(problems) > 1 else ""
        )
        raise RequestError(f"input={path}: {first}{more}")


def check_name(name: str) -> None:
    """Raise RequestError for a name that cannot be the name of a folder of results."""
    fits = name.isprintable() and name not in ("", ".", "..")
    check(fits, "input", ascii(name), "cannot be the name of a folder of results", "rename it")


def _names_by_channel(path: Path, names: Sequence[str], channels: Sequence[str]) -> dict[str, str]:
    """Return the cohort's name of each channel, such as T1 for pre-contrast.

    Raises RequestError if several names fit one channel, or if no name fits any channel.
    """
    chosen = {}
    for channel in channels:
        equal = [name for name in names if letters_and_digits(name) == letters_and_digits(channel)]
        same_kind = [
            name for name in names if _kind_of(name) and _kind_of(name) == _kind_of(channel)
        ]
        # An equal name takes precedence over other names of the same sequence.
        matches = equal or same_kind
        rule = f"{list_some(matches)} could each be {channel}"
        remedy = f"choose by sequences.{channel}=PATTERN"
        check(len(matches) < 2, "input", path, rule, remedy)
        if matches:
            chosen[channel] = matches[0]
    rule = f"holds {list_some(names)}, and the checkpoint takes {', '.join(channels)}"
    remedy = f"assign the files by patterns, as sequences.{channels[0]}='*_0000.nii.gz'"
    check(bool(chosen), "input", path, rule, remedy)
    return chosen


def _kind_of(name: str) -> str | None:
    """Return the sequence that a channel's name means, None if the name is unknown."""
    return sequence_of(name) or ALIASES.get(letters_and_digits(name))


def _labels_for(reader: CaseReader, classes: Sequence[str]) -> tuple[Labels | None, list[str]]:
    """Return the labels that give the masks the checkpoint's classes, and notes.

    The labels are None if the masks have other classes, or if there are no masks.
    """
    if all(case.mask is None for case in reader.cases):
        return None, []
    labels = reader.labels
    # If both have one foreground class, its name does not matter.
    if len(classes) == len(labels.classes) == 2:
        same = normalize_case(classes[1]) == normalize_case(labels.classes[1])
        note = f"{labels.classes[1]} of the masks is scored as {classes[1]}"
        return labels, [] if same else [note]
    # The names of some classes depend on the labels that occur in the masks. Counting them would
    # read every mask, so the names with and without these labels are tried instead.
    for count in (0, 1):
        names = reader.name_classes(np.full(256, count))[0]
        if [*map(normalize_case, names)] == [*map(normalize_case, classes)]:
            values = {v: index for v, index in (labels.values or {}).items() if index < len(names)}
            return Labels(tuple(names), values), []
    return None, [
        f"not scored: the masks have the classes {', '.join(labels.classes[1:])}, "
        f"the checkpoint {', '.join(classes[1:])}"
    ]


def _make_input_case(
    reader: CaseReader,
    case: Case,
    names: Mapping[str, str],
    channels: Sequence[str],
    labels: Labels | None,
    volume: int | None,
    notes: Sequence[str],
) -> InputCase:
    """Return a case as input, a `FaultyCase` if its names or headers show a fault."""
    check_name(case.name)
    files = {channel: case.images[name] for channel, name in names.items() if name in case.images}
    try:
        if case.faults or not files:
            absence = f"has no image of {', '.join(names.values())}"
            raise DataError("; ".join(case.faults) or absence)
        images = {
            channel: open_image(file.path, file.volume or volume) for channel, file in files.items()
        }
        image_case = make_case(case.name, images, channels)
    except (DataError, RequestError) as error:
        paths = {channel: file.path for channel, file in files.items()}
        return FaultyCase(case.name, channels, str(error), paths)
    notes = [*image_case.notes, *notes]
    mask = case.mask if labels is not None and not case.mask_faults else None
    if labels is not None and mask is None:
        notes.append(f"not scored: {'; '.join(case.mask_faults) or 'no mask'}")
    return CohortCase(
        image_case.name,
        channels,
        image_case.volumes,
        notes,
        case.patient,
        mask,
        labels or Labels(),
        reader.labels_file,
    )
