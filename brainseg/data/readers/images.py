"""Slices as pictures: PNG, JPEG or TIFF, a file per slice, with masks found by a pattern of the same fields.

    images='images/{patient}_{slice}.png' mask='masks/{patient}_{slice}.png'
    images='{patient}/{slice}.jpg' mask='{patient}/{slice}_mask.png'
    sequences.T1='T1/{patient}_{slice}.png' sequences.FLAIR='FLAIR/{patient}_{slice}.png' mask=...

Pictures are taken as they are: axial, face up, the patient's left at the right. They give no voxel size.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brainseg.data.readers.base import NAME, Reading, Scan, list_some, require
from brainseg.data.readers.labels import Labels, map_labels, parse_classes
from brainseg.data.readers.patterns import Pattern, list_files, summarise_files
from brainseg.data.readers.pictures import has_colour, read_indices, read_picture
from brainseg.data.volume import patient_of
from brainseg.errors import DataError, check

COLOURS = ("red", "green", "blue")
MASK = "mask"
Files = dict[
    str, dict[int, list[str]]
]  # path relative to the source by what the file is, and slice number


@dataclass
class SliceReader:
    """Reader of pictures. `colour` says that the channels are the colours of one picture."""

    files: dict[str, Files]  # by volume
    patients: Mapping[str, str]
    channels: Sequence[str]
    labels: Labels
    colour: bool
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def classes(self) -> Sequence[str]:
        """Return the names of the classes, background first."""
        return self.labels.classes

    def volumes(self, source: Path) -> Iterable[str]:
        """Return the names of the volumes."""
        return list(self.files)

    def read(self, source: Path, volume: str) -> Scan:
        """Return the slices of a volume by number.

        Raises DataError naming files that are missing or unreadable.
        """
        files = self.files[volume]
        # FLAIR stands in for a sequence of which the volume has no slice, as in the public set.
        names = [name if name in files or "FLAIR" not in files else "FLAIR" for name in self._kinds]
        _check_complete(files, dict.fromkeys([*names, MASK]))
        numbers = sorted(files[MASK])
        masks = [read_indices(source / files[MASK][number][0]) for number in numbers]
        pictures = [
            [read_picture(source / files[name][number][0], self.colour) for name in names]
            for number in numbers
        ]
        paths = [files[names[0]][number][0] for number in numbers]
        sizes = [picture.shape[1:] for slice_ in pictures for picture in slice_]
        for path, slice_, mask in zip(paths, pictures, masks, strict=True):
            shapes = {picture.shape[1:] for picture in slice_}
            require(
                shapes == {mask.shape},
                f"{path}: {_size(slice_[0].shape[1:])} pixels; its mask has {_size(mask.shape)}",
            )
        require(
            len(set(sizes)) == 1,
            f"slices of {list_some(sorted(map(_size, set(sizes))))} pixels; all need one size",
        )
        try:
            indices = map_labels(np.stack(masks), self.labels)
        except DataError as error:
            raise DataError(_with_jpeg(str(error), files[MASK][numbers[0]][0])) from error
        images = np.stack([np.concatenate(slice_) for slice_ in pictures])
        return Scan(images, indices, None, numbers, self.patients[volume])

    @property
    def _kinds(self) -> Sequence[str]:
        """Return the keys of the images in the files of a volume."""
        return ("images",) if self.colour else self.channels


def _check_complete(files: Files, names: Iterable[str]) -> None:
    """Raise DataError unless each slice has one file of each kind."""
    faults = []
    numbers = sorted({number for slices in files.values() for number in slices})
    for name in names:
        slices = files.get(name, {})
        missing = [number for number in numbers if number not in slices]
        faults += [f"no {name} of slices {list_some(missing)}"] if missing else []
        double = [paths for paths in slices.values() if len(paths) > 1]
        faults += [f"several files are one slice: {list_some(paths, 3)}" for paths in double]
    require(not faults, "; ".join(faults))


def make(source: Path, reading: Reading) -> SliceReader:
    """Return the reader of a folder of pictures.

    Raises RequestError if no file fits the patterns.
    """
    texts = dict(reading.sequences) if reading.sequences else {"images": reading.images}
    texts = {name: str(text) for name, text in texts.items() if text is not None}
    check(bool(texts), "images", "null", f"needs a pattern; {source} holds {summarise_files(list_files(source))}",
          "as images='images/{patient}_{slice}.png'")  # fmt: skip
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
            name: found
            for name, pattern in patterns.items()
            if (found := pattern.match(path)) is not None
        }
        if not matches:
            ignored.append(path)
            continue
        # A mask beside its slice, P1_3_mask.png, would also be the slice 3 of a patient, were it
        # not for the mask's pattern.
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
    """Return the channels, whether they are the colours of a picture, and notes.

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
    sample = {
        path: has_colour(source / path)
        for path in dict.fromkeys([paths[0], paths[len(paths) // 2], paths[-1]])
    }
    colour = any(sample.values())
    usual = COLOURS if colour else ("image",)
    if reading.channels is not None:
        names = list(reading.channels)
        fits = len(names) in ((3,) if colour else (1, 3)) and len(set(names)) == len(names)
        rule = f"pictures are {'in colour: three names, of red, green, blue' if colour else 'grey: one name'}"
        check(fits and all(NAME.fullmatch(name) for name in names), "channels", names, rule)
        return tuple(names), len(names) == 3, []
    remedy = f"channels=[{','.join('ABC')}] names them" if colour else "channels=[FLAIR] names it"
    return (
        usual,
        colour,
        [f"pictures are {'in colour' if colour else 'grey'}: channel {', '.join(usual)}; {remedy}"],
    )


def _with_jpeg(text: str, path: str) -> str:
    """Return a message about the values of a mask, with the reason where its format is lossy."""
    lossy = path.lower().endswith((".jpg", ".jpeg"))
    return (
        "JPEG changes the values of masks; save them as PNG, from the originals; " + text
        if lossy
        else text
    )


def _setting(name: str) -> str:
    return name if name in (MASK, "images") else f"sequences.{name}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
