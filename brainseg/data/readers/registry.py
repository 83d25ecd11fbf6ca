"""Registry of readers by name, both built-in ones and the entry points `brainseg.readers`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from brainseg.core.errors import check
from brainseg.core.extensions import load_extension, registered_names
from brainseg.data.readers import bids, brats, images, nifti, nnunet
from brainseg.data.readers.base import NAME, Reader, Reading
from brainseg.data.readers.kaggle_3m import Cohort, Show
from brainseg.data.readers.kaggle_3m import scan_slices as scan_kaggle_3m
from brainseg.data.readers.labels import parse_classes
from brainseg.data.readers.recognise import recognise_layout
from brainseg.data.readers.verify import scan_volumes

Scanner = Callable[[str | Path, int | None, Show | None], Cohort]
KAGGLE_3M = "kaggle_3m"
READER_MAKERS: dict[str, Callable[[Path, Reading], Reader]] = {
    "nifti": nifti.make_reader,
    "nnunet": nnunet.make_reader,
    "bids": bids.make_reader,
    "brats": brats.make_reader,
    "images": images.make_reader,
}
PROTOCOL = "see Reader in brainseg/data/readers/base.py"
# Settings of each reader besides spacing and size, which all of these readers take.
TAKES = {
    "nifti": ("sequences", "mask", "classes", "onto"),
    "nnunet": ("classes", "onto"),
    "bids": ("sequences", "mask", "classes", "onto"),
    "brats": ("classes", "onto"),
    "images": ("sequences", "images", "mask", "channels", "classes"),
}


def choose_scanner(source: str | Path, reading: Reading) -> tuple[str, Scanner]:
    """Return the reader's name and the function that verifies a source. Raises RequestError.

    Without `reading.reader` the layout of the source is recognised.
    """
    name = reading.reader or recognise_layout(Path(source), reading)
    registered_class = (
        None if name in (KAGGLE_3M, *READER_MAKERS) else load_extension("brainseg.readers", name)
    )
    names = ", ".join([KAGGLE_3M, *READER_MAKERS, *registered_names("brainseg.readers")])
    rule = f"known: {names}; docs/extending.md says how to add one"
    check(
        name in (KAGGLE_3M, *READER_MAKERS) or registered_class is not None,
        "reader",
        name,
        "no such reader",
        rule,
    )
    # If a reader ignored a setting silently, the user would believe that it had an effect.
    _check_settings(name, reading)
    if name == KAGGLE_3M:
        remedy = "leave spacing out; size=256 cuts or pads"
        check(
            reading.spacing is None,
            "spacing",
            reading.spacing,
            "TIFF slices of kaggle_3m give no voxel size",
            remedy,
        )
        return name, partial(scan_kaggle_3m, size=reading.size)
    if name in READER_MAKERS:
        return name, partial(_scan_files, name, reading=reading)
    return name, partial(scan_volumes, _construct(name, registered_class), reading=reading)


def _scan_files(
    name: str,
    source: str | Path,
    workers: int | None = None,
    show: Show | None = None,
    *,
    reading: Reading,
) -> Cohort:
    """List the files of a source, then verify every volume.

    Raises RequestError if nothing fits the settings.
    """
    return scan_volumes(READER_MAKERS[name](Path(source), reading), source, workers, show, reading)


def _check_settings(name: str, reading: Reading) -> None:
    """Raise RequestError for a setting that the reader does not take, and for invalid classes."""
    for setting in ("sequences", "images", "mask", "channels", "classes", "onto"):
        value = getattr(reading, setting)
        takes = [reader for reader, settings in TAKES.items() if setting in settings]
        remedy = f"leave it out, or use reader={' or '.join(takes)}"
        check(
            not value or setting in TAKES.get(name, ()),
            setting,
            value,
            f"reader={name} takes no {setting}",
            remedy,
        )
    if reading.classes:
        parse_classes(reading.classes)


def _construct(name: str, registered_class: Any) -> Reader:
    """Return an instance of the class that a package registered.

    Raises RequestError if the instance is no reader.
    """
    try:
        reader = registered_class()
        channels, classes = list(reader.channels), list(reader.classes)
    # The code of another package may raise any exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        check(False, "reader", name, f"{registered_class!r} is no reader ({reason})", PROTOCOL)
    # Names of channels and classes become parts of metrics' names, and must be unique and valid.
    for kind, names, minimum in (("channels", channels, 1), ("classes", classes, 2)):
        fits = minimum <= len(names) <= 256 and len(set(names)) == len(names)
        fits = fits and all(isinstance(text, str) and NAME.fullmatch(text) for text in names)
        rule = f"must be {minimum} or more different names of letters, digits, space, _ . -"
        check(fits, f"reader {name}, {kind}", names, rule)
    for method in ("volumes", "read"):
        has_method = callable(getattr(reader, method, None))
        check(has_method, "reader", name, f"has no method {method}", PROTOCOL)
    return reader
