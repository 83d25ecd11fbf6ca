"""Reader of slices as pictures (PNG, JPEG or TIFF), with one file per slice and one per mask.

    images='images/{patient}_{slice}.png' mask='masks/{patient}_{slice}.png'
    images='{patient}/{slice}.jpg' mask='{patient}/{slice}_mask.png'
    sequences.T1='T1/{patient}_{slice}.png' sequences.FLAIR='FLAIR/{patient}_{slice}.png' mask=...

Pictures must be axial, with the face up and the patient's left at the right. They give no voxel
size.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from brainseg.core.errors import check
from brainseg.data.readers.base import NAME, Reading
from brainseg.data.readers.labels import Labels, parse_classes
from brainseg.data.readers.patterns import Pattern, list_files, summarise_files
from brainseg.data.readers.pictures import has_colour
from brainseg.data.readers.slices import MASK, Files, SliceReader
from brainseg.data.volume import patient_of

COLOURS = ("red", "green", "blue")


def make_reader(source: Path, reading: Reading) -> SliceReader:
    """Return the reader of a folder of pictures.

    Raises RequestError if no file fits the patterns.
    """
    texts = dict(reading.sequences) if reading.sequences else {"images": reading.images}
    texts = {name: str(text) for name, text in texts.items() if text is not None}
    rule = f"needs a pattern; {source} holds {summarise_files(list_files(source))}"
    check(bool(texts), "images", "null", rule, "as images='images/{patient}_{slice}.png'")
    check(
        not (reading.sequences and reading.images),
        "images",
        reading.images,
        "sequences are given, too",
        "give one of them",
    )
    check(
        reading.mask is not None,
        "mask",
        "null",
        "needs a pattern",
        "as mask='masks/{patient}_{slice}.png'",
    )
    texts[MASK] = str(reading.mask)
    check(
        reading.onto is None,
        "onto",
        reading.onto,
        "pictures have no position to resample by",
        "leave it out",
    )
    patterns = {name: Pattern(_setting(name), text) for name, text in texts.items()}
    for name, pattern in patterns.items():
        complete = {"patient", "slice"} <= pattern.fields
        check(
            complete,
            _setting(name),
            texts[name],
            "must name {patient} and {slice}",
            "as '{patient}_{slice}.png'",
        )
    files, patients, ignored = _find(source, patterns)
    for name, text in texts.items():
        first = next(
            (paths[0] for kinds in files.values() for paths in kinds.get(name, {}).values()), None
        )
        rule = f"matches no file below {source}, which holds {summarise_files(list_files(source))}"
        check(
            first is not None,
            _setting(name),
            text,
            rule,
            "{slice} stands for digits, {patient} for all but /",
        )
    channels, colour, notes = _channels(source, files, reading)
    labels = parse_classes(reading.classes) if reading.classes else Labels()
    # Grey pictures are a single channel, stored under its name like a sequence.
    if not colour and not reading.sequences:
        for kinds in files.values():
            kinds[channels[0]] = kinds.pop("images", {})
    return SliceReader(files, patients, channels, labels, colour, notes, ignored)


def _find(
    source: Path, patterns: Mapping[str, Pattern]
) -> tuple[dict[str, Files], dict[str, str], list[str]]:
    """Return the files of each volume, its patient, and the files that no pattern matches."""
    files: dict[str, Files] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    patients, ignored = {}, []
    for path in list_files(source):
        matches = {
            name: fields
            for name, pattern in patterns.items()
            if (fields := pattern.match(path)) is not None
        }
        if not matches:
            ignored.append(path)
            continue
        # A mask beside its slice, such as P1_3_mask.png, may also match the pattern of the slices.
        # The pattern with more literal characters decides.
        name = max(matches, key=lambda key: patterns[key].literal)
        patient, session = matches[name]["patient"], matches[name].get("session")
        volume = f"{patient}_{session}" if session else patient
        files[volume][name][int(matches[name]["slice"])].append(path)
        patients[volume] = patient_of(patient)
    plain = {
        volume: {name: dict(slices) for name, slices in kinds.items()}
        for volume, kinds in files.items()
    }
    return plain, patients, ignored


def _channels(
    source: Path, files: Mapping[str, Files], reading: Reading
) -> tuple[tuple[str, ...], bool, list[str]]:
    """Return the channels, True if they are the colours of a picture, and notes.

    Raises RequestError.
    """
    if reading.sequences:
        for name in reading.sequences:
            rule = "a name has letters, digits, space, _ . -"
            check(
                NAME.fullmatch(name) is not None and name != MASK,
                f"sequences.{name}",
                reading.sequences[name],
                rule,
            )
        check(
            reading.channels is None,
            "channels",
            reading.channels,
            "sequences name the channels",
            "leave it out",
        )
        return tuple(reading.sequences), False, []
    paths = [paths[0] for kinds in files.values() for paths in kinds.get("images", {}).values()]
    # Only the first, the middle and the last picture are opened to recognise colour.
    sample = {
        path: has_colour(source / path)
        for path in dict.fromkeys([paths[0], paths[len(paths) // 2], paths[-1]])
    }
    colour = any(sample.values())
    usual = COLOURS if colour else ("image",)
    if reading.channels is not None:
        names = list(reading.channels)
        fits = len(names) in ((3,) if colour else (1, 3)) and len(set(names)) == len(names)
        needed = "in colour: three names, of red, green, blue" if colour else "grey: one name"
        rule = f"pictures are {needed}"
        check(fits and all(NAME.fullmatch(name) for name in names), "channels", names, rule)
        return tuple(names), len(names) == 3, []
    remedy = f"channels=[{','.join('ABC')}] names them" if colour else "channels=[FLAIR] names it"
    return (
        usual,
        colour,
        [f"pictures are {'in colour' if colour else 'grey'}: channel {', '.join(usual)}; {remedy}"],
    )


def _setting(name: str) -> str:
    """Return the setting that gives a pattern."""
    return name if name in (MASK, "images") else f"sequences.{name}"
