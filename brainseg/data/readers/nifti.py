"""Reader of cohorts with one file per sequence, in a folder per patient or in a flat folder.

    FLAIR='*_flair.nii.gz'                       P1/scan_flair.nii.gz, or P1_flair.nii.gz
    FLAIR='anat/FLAIR.nii.gz'                    P1/anat/FLAIR.nii.gz
    FLAIR='images/*_flair.nii.gz'                images/P1_flair.nii.gz
    FLAIR='{patient}/{session}/flair.nii.gz'     sessions of one patient stay together

The formats are those of `predict`, namely NIfTI, NRRD, MetaImage and MGZ.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg.core.errors import check
from brainseg.data.readers.base import NAME, Reading, list_some
from brainseg.data.readers.case import Case, CaseReader, ImageFile
from brainseg.data.readers.guess import guess_patterns
from brainseg.data.readers.labels import parse_classes
from brainseg.data.readers.patterns import IMAGE_SUFFIXES, Pattern, list_files, summarise_files
from brainseg.data.volume import patient_of

# Key of the mask's pattern, beside the keys of the sequences.
MASK = "mask"


def make_reader(source: Path, reading: Reading) -> CaseReader:
    """Return the reader of a cohort. Raises RequestError if no file fits the patterns."""
    sequences, mask, notes = dict(reading.sequences), reading.mask, []
    if not sequences:
        sequences, guessed = guess_patterns(list_files(source, IMAGE_SUFFIXES))
        mask = mask or guessed
        check(bool(sequences), "sequences", "{}", f"{source} holds {_contents(source)}", EXAMPLE)
        texts = [f"sequences.{name}='{text}'" for name, text in sequences.items()]
        notes.append(f"patterns by the files' names: {' '.join(texts)} mask='{mask}'")
    check(
        mask is not None,
        "mask",
        "null",
        "prepare needs the masks",
        "give their pattern, as mask='*_seg.nii.gz'",
    )
    cases, ignored = find_cases(source, sequences, mask)
    labels = parse_classes(reading.classes) if reading.classes else None
    reader = CaseReader(cases, tuple(sequences), onto=reading.onto, notes=notes, ignored=ignored)
    reader.labels = labels or reader.labels
    return reader


EXAMPLE = "name the files by patterns, as sequences.FLAIR='*_flair.nii.gz' mask='*_seg.nii.gz'"


def list_cases(folder: str | Path, sequences: Mapping[str, str]) -> list[Case]:
    """Return the cases below a folder without their masks, by one pattern per sequence.

    Raises RequestError.
    """
    return find_cases(Path(folder), sequences, None)[0]


def find_cases(
    source: Path, sequences: Mapping[str, str], mask: str | None
) -> tuple[list[Case], list[str]]:
    """Return the cases of a folder, sorted by name, and the images that no pattern matches.

    Raises RequestError.
    """
    texts = {name: str(text) for name, text in sequences.items()} | ({MASK: mask} if mask else {})
    for name in sequences:
        rule = "a name has letters, digits, space, _ . -"
        check(
            NAME.fullmatch(name) is not None and name != MASK,
            f"sequences.{name}",
            sequences[name],
            rule,
        )
    paths = list_files(source)
    patterns = {name: _resolve_pattern(name, text, paths) for name, text in texts.items()}
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    patients: dict[str, str] = {}
    ignored = []
    for path in paths:
        matches = {
            name: fields
            for name, pattern in patterns.items()
            if (fields := pattern.match(path)) is not None
        }
        if not matches:
            ignored += [path] if path.lower().endswith(IMAGE_SUFFIXES) else []
            continue
        # If several patterns match a file, the pattern with the most literal characters counts.
        name = max(matches, key=lambda key: patterns[key].literal)
        twins = [
            key
            for key in matches
            if patterns[key].literal == patterns[name].literal and key != name
        ]
        rule = f"matches {path}, as {list_some(map(_setting, twins))} does"
        remedy = "give patterns that tell the files apart"
        check(not twins, _setting(name), texts[name], rule, remedy)
        patient, volume = _names(matches[name])
        files[volume][name].append(path)
        patients[volume] = patient
    _refuse_empty(source, files, texts, paths)
    cases = [
        _case(source, volume, patients[volume], files[volume], texts) for volume in sorted(files)
    ]
    return cases, ignored


def _resolve_pattern(name: str, text: str, paths: Sequence[str]) -> Pattern:
    """Return the pattern with `{patient}` in place of the folder, or of the star in a flat folder.

    Raises RequestError if it is unclear which part of the pattern is the patient.
    """
    setting = _setting(name)
    pattern = Pattern(setting, text)
    if "patient" in pattern.fields:
        return pattern
    check(
        not pattern.fields,
        setting,
        text,
        "names no {patient}",
        "put {patient} where the patient's name stands",
    )
    first, _, rest = text.partition("/")
    if rest and "*" in first:
        return Pattern(
            setting,
            text.replace(
                first, "{patient}" if first == "*" else first.replace("*", "{patient}", 1), 1
            ),
        )
    # The source is flat if more files match there. A file beside patients' folders may be an atlas.
    folders = Pattern(setting, "{patient}/" + text)
    if _count(pattern, paths) > _count(folders, paths):
        check(
            pattern.stars > 0,
            setting,
            text,
            "names one file of the source",
            "put a star where the patient's name stands",
        )
        rule = "has several stars, and one of them is the patient"
        remedy = "write {patient} in its place, as '{patient}_*_flair.nii.gz'"
        check(pattern.stars == 1, setting, text, rule, remedy)
        return Pattern(setting, text.replace("*", "{patient}"))
    return folders


def _count(pattern: Pattern, paths: Sequence[str]) -> int:
    """Return the number of paths that match a pattern."""
    return sum(pattern.match(path) is not None for path in paths)


def _names(fields: Mapping[str, str]) -> tuple[str, str]:
    """Return the patient and the name of the volume from the fields of a path."""
    patient, session = fields["patient"], fields.get("session")
    return patient_of(patient), f"{patient}_{session}" if session else patient


def _case(
    source: Path,
    name: str,
    patient: str,
    files: Mapping[str, Sequence[str]],
    texts: Mapping[str, str],
) -> Case:
    """Return a case with a fault for each pattern that several of its files match."""
    faults = {
        key: f"{len(paths)} files match {_setting(key)}={texts[key]}: {list_some(paths, 3)}; "
        "name one of them"
        for key, paths in files.items()
        if len(paths) > 1
    }
    if MASK in texts and MASK not in files:
        faults[MASK] = f"no file matches mask={texts[MASK]}"
    mask_faults = (faults.pop(MASK),) if MASK in faults else ()
    located = {key: ImageFile(source / paths[0]) for key, paths in files.items()}
    images = {key: located[key] for key in texts if key in located and key != MASK}
    return Case(name, patient, images, located.get(MASK), tuple(faults.values()), mask_faults)


def _refuse_empty(
    source: Path,
    files: Mapping[str, Mapping[str, Sequence[str]]],
    texts: Mapping[str, str],
    paths: Sequence[str],
) -> None:
    """Raise RequestError for a pattern that matches no file at all."""
    for name, text in texts.items():
        if not any(name in case_files for case_files in files.values()):
            rule = f"matches no file below {source}, which holds {summarise_files(paths)}"
            is_deeper = any(Pattern("", "**/" + text).match(path) is not None for path in paths)
            remedy = (
                "a pattern starts at the source or at a folder in it, "
                "as '{patient}/{session}/flair.nii.gz'"
            )
            check(
                False,
                _setting(name),
                text,
                rule,
                remedy if is_deeper else "* stands for any characters but /",
            )


def _setting(name: str) -> str:
    """Return the setting that gives a pattern."""
    return MASK if name == MASK else f"sequences.{name}"


def _contents(source: Path) -> str:
    """Return the number and examples of the files below a folder, for messages."""
    return summarise_files(list_files(source))
