"""Reader of datasets of nnU-Net (versions 1 and 2) and of the Medical Segmentation Decathlon.

nnU-Net stores one file per channel, such as `imagesTr/CASE_0000.nii.gz`. The Decathlon stores one
file of several volumes, `imagesTr/CASE.nii.gz`. The mask is `labelsTr/CASE.nii.gz` in both.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brainseg.core.errors import RequestError, check
from brainseg.data.readers.base import NAME, Reading
from brainseg.data.readers.case import Case, CaseReader, ImageFile
from brainseg.data.readers.guess import sequence_of
from brainseg.data.readers.labels import BACKGROUND, Labels, parse_classes
from brainseg.data.readers.patterns import list_files
from brainseg.data.volume import patient_of

DESCRIPTION = "dataset.json"


def is_dataset(source: Path) -> bool:
    """Return True if the folder has the layout of nnU-Net or of the Decathlon."""
    return (source / DESCRIPTION).is_file() and (source / "imagesTr").is_dir()


def make_reader(source: Path, reading: Reading, part: str = "Tr") -> CaseReader:
    """Return the reader of the cases in imagesTr, or in imagesTs if `part` is "Ts".

    Raises RequestError for an incomplete dataset, and for overlapping regions.
    """
    description = _read_description(source / DESCRIPTION)
    notes: list[str] = []
    stored = description.get("channel_names") or description.get("modality")
    rule = "has no channel_names (or modality, as in version 1)"
    has_channels = isinstance(stored, dict) and bool(stored)
    check(has_channels, "source", source / DESCRIPTION, rule, 'add them, as {"0": "FLAIR"}')
    assert isinstance(stored, dict)
    channels = _channels(stored, notes)
    labels = parse_classes(reading.classes) if reading.classes else _labels(description, notes)
    ending = str(description.get("file_ending", ".nii.gz"))
    has_pictures = ending.lower() in (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
    rule = f"{source / DESCRIPTION} says file_ending {ending}, which are pictures"
    check(
        not has_pictures, "reader", "nnunet", rule, "use reader=images with patterns of their names"
    )
    cases, ignored = _cases(source, channels, ending, part)
    return CaseReader(
        cases, tuple(channels), labels, reading.onto, notes, ignored, source / DESCRIPTION
    )


def _read_description(path: Path) -> dict[str, Any]:
    """Return the content of dataset.json. Raises RequestError."""
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise RequestError(
            f"source={path.parent}: {path.name} cannot be read ({reason}); correct it"
        ) from error
    check(isinstance(description, dict), "source", path, "is no JSON object", "correct it")
    return description


def _channels(stored: Mapping[str, Any], notes: list[str]) -> list[str]:
    """Return the names of the channels in the order of their numbers.

    Every spelling of FLAIR becomes FLAIR. Changed names are added to `notes`.
    """
    numbers = sorted(stored, key=lambda key: (len(str(key)), str(key)))
    names: list[str] = []
    for number in numbers:
        text = str(stored[number])
        name = "FLAIR" if sequence_of(text) == "FLAIR" else _clean(text)
        name = name if name and name not in names else f"channel {number}"
        names.append(name)
        if name != text:
            notes.append(f"channel {text!r} of {DESCRIPTION} is called {name}")
    return names


def _clean(name: str) -> str:
    """Return a name with dashes for signs that metrics' names must not contain, else ""."""
    cleaned = re.sub(r"-{2,}", "-", re.sub(r"[^\w .-]", "-", name)).strip(" .-")
    return cleaned if NAME.fullmatch(cleaned) else ""


def _labels(description: Mapping[str, Any], notes: list[str]) -> Labels:
    """Return the labels of {"0": "background"} (version 1) or {"background": 0} (version 2).

    Changed names are added to `notes`. Raises RequestError.
    """
    stored = description.get("labels")
    check(
        isinstance(stored, dict) and bool(stored),
        "source",
        DESCRIPTION,
        "has no labels",
        "add them, or give classes",
    )
    assert isinstance(stored, dict)
    values_by_name: dict[str, list[int]] = {}
    try:
        for key, value in stored.items():
            name, values = (value, [key]) if isinstance(value, str) else (key, value)
            value_list = values if isinstance(values, list) else [values]
            values_by_name[str(name)] = [int(number) for number in value_list]
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"source={DESCRIPTION}: labels {stored} are no numbers; correct them, or give classes"
        ) from error
    _refuse_overlap(values_by_name, description)
    classes: dict[str, list[int]] = {}
    for name, values in values_by_name.items():
        if name == "ignore":
            notes.append(f"label {name} ({values[0]}) is no class; a mask that holds it is a fault")
            continue
        is_background = values == [0] or name.lower() == BACKGROUND
        title = BACKGROUND if is_background else _clean(name) or f"class {values[0]}"
        title = f"{title} {values[0]}" if title in classes else title
        classes[title] = values
        if title != name:
            notes.append(f"label {name!r} of {DESCRIPTION} is called {title}")
    return parse_classes(classes)


def _refuse_overlap(
    values_by_name: Mapping[str, list[int]], description: Mapping[str, Any]
) -> None:
    """Raise RequestError for regions that share a value, because each pixel has one class here.

    nnU-Net writes the regions one over the other, in the file's order, so the last region of a
    value is its class.
    """
    last = {value: name for name, values in values_by_name.items() for value in values}
    regions = {name: values for name, values in values_by_name.items() if len(values) > 1}
    overlapping = [
        name for name, values in regions.items() if any(last[value] != name for value in values)
    ]
    if not overlapping:
        return
    exclusive: dict[str, list[int]] = {}
    for value, name in last.items():
        if value:
            class_name = (_clean(name) or f"class {value}").replace(" ", "_")
            exclusive.setdefault(class_name, []).append(value)
    texts = [
        f"classes.{name}={str(values).replace(' ', '') if len(values) > 1 else values[0]}"
        for name, values in exclusive.items()
    ]
    rule = (
        f"{DESCRIPTION} has regions that overlap ({', '.join(overlapping)}); "
        "here each pixel has one class"
    )
    raise RequestError(
        f"source={description.get('name', DESCRIPTION)}: {rule}; "
        f"name the classes, as {' '.join(texts)}"
    )


def _cases(
    source: Path, channels: list[str], ending: str, part: str
) -> tuple[list[Case], list[str]]:
    """Return the cases of imagesTr and labelsTr (or Ts), and the files that belong to no case.

    Raises RequestError if there are no cases.
    """
    images_folder, folder = f"images{part}", source / f"labels{part}"
    images = [path for path in list_files(source / images_folder) if path.endswith(ending)]
    masks = (
        {path.removesuffix(ending) for path in list_files(folder) if path.endswith(ending)}
        if folder.is_dir()
        else set()
    )
    files: dict[str, dict[str, ImageFile]] = {name: {} for name in masks}
    ignored = []
    for path in images:
        stem, file = path.removesuffix(ending), source / images_folder / path
        name, _, number = stem.rpartition("_")
        is_numbered = re.fullmatch("[0-9]{4}", number) is not None
        # A file of the Decathlon holds all channels and has the name of its mask. Test cases have
        # no masks and are recognised by the missing number.
        if stem in masks or (part == "Ts" and not is_numbered):
            files.setdefault(stem, {})
            for index, channel in enumerate(channels):
                files[stem][channel] = ImageFile(file, index + 1 if len(channels) > 1 else None)
        elif is_numbered and int(number) < len(channels):
            files.setdefault(name, {})[channels[int(number)]] = ImageFile(file)
        else:
            ignored.append(f"{images_folder}/{path}")
    # If no file fits, the usual reason is that files have another ending than file_ending.
    if not files:
        raise RequestError(
            f"source={source}: {images_folder} holds no file that ends in {ending}; "
            f"see file_ending of {DESCRIPTION}"
        )
    cases = []
    for name in sorted(files):
        mask = ImageFile(folder / f"{name}{ending}") if name in masks else None
        missing = () if mask else (f"labels{part} holds no {name}{ending}",)
        cases.append(Case(name, patient_of(name), files[name], mask, mask_faults=missing))
    return cases, ignored
