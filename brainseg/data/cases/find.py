"""Interpretation of `input=` and `sequences.NAME=` as cases.

input=kaggle_3m                                  every patient of the cohort
input=scan.tif                                   a stack of slices, with the sequences as channels
input=flair.nii.gz                               FLAIR, or the only sequence of the checkpoint
input=[pre.nii.gz,flair.nii.gz,post.nii.gz]      in the checkpoint's order, null for a missing one
input=folder sequences.FLAIR=t2_flair.nii.gz     a file, a subfolder, or a part of a description
input=folder sequences.FLAIR='*_flair.nii.gz'    every case of a cohort

Cohorts are listed by `cohort` and `dicom_cohort`.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg.core.errors import DataError, RequestError, check
from brainseg.data.cases import dicom_cohort, tiff_folder, tiff_stack
from brainseg.data.cases.assignment import (
    assign_channels,
    channels_in,
    check_names,
    normalize_case,
    quote_setting,
)
from brainseg.data.cases.cohort import check_name, find_cohort
from brainseg.data.cases.input_case import InputCase, make_case
from brainseg.data.imageio import dicom, first_bytes
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.open import SUFFIXES, open_image
from brainseg.data.imageio.streams import read_start
from brainseg.data.readers.patterns import IMAGE_SUFFIXES, list_files
from brainseg.data.store import is_store
from brainseg.data.volume import CLASSES, main_channel

Source = str | Sequence[str | None]
PATTERN = "sequences.FLAIR='*_flair.nii.gz'"


def find_cases(
    source: Source,
    sequences: Mapping[str, str],
    channels: Sequence[str],
    volume: int | None = None,
    classes: Sequence[str] = CLASSES,
) -> list[InputCase]:
    """Return the cases that a request means, from names and headers. Voxels are read later.

    `channels` and `classes` are the sequences and classes of the checkpoint. `volume` is the number
    of the volume to read from files with several volumes. Raises RequestError for any fault in the
    request or in the headers.
    """
    sequences = _by_channel(sequences, channels)
    try:
        if not isinstance(source, str):
            return [_case_from_list(source, sequences, channels, volume)]
        if Path(source).is_dir():
            return _cases_in_folder(Path(source), sequences, channels, classes, volume)
        return [_case_from_file(Path(source), sequences, channels, volume)]
    except DataError as error:
        # Nothing has been created yet, so the fault is reported as a fault of the request.
        raise RequestError(_with_path(source, str(error))) from error


def check_input(source: Source) -> None:
    """Raise RequestError for a path that does not exist, or for a file of prepared slices."""
    for path in [source] if isinstance(source, str) else source:
        if path is None:
            continue
        check(os.path.lexists(path), "input", path, "no such file or folder")
        check(Path(path).exists(), "input", path, "is a link to a file that does not exist")
        if path.endswith((".h5", ".hdf5")):
            remedy = f"brainseg.evaluate scores its patients, with data.path={path}"
            rule = "a file of prepared slices, not a scan"
            check(not is_store(path), "input", path, rule, remedy)
            rule = "not a scan, and not a file that prepare made"
            check(
                False, "input", path, rule, "save each sequence as NIfTI, for example with nibabel"
            )


def case_name(path: Path) -> str:
    """Return the name of a case: its folder's name, or its file's name without suffixes.

    Raises RequestError for a name that cannot be the name of a folder of results.
    """
    path = path.absolute()
    name = path.name
    if path.is_file():
        # Names may end with several suffixes, such as .nii.gz and .ome.tif.
        for suffix in (".gz", ".bz2", Path(name).suffix):
            shorter = (
                name[: -len(suffix)] if suffix and name.lower().endswith(suffix.lower()) else ""
            )
            name = shorter or name
        name = name.removesuffix(".nii").removesuffix(".NII").removesuffix(".ome") or path.name
    check_name(name)
    return name


def _by_channel(sequences: Mapping[str, str], channels: Sequence[str]) -> dict[str, str]:
    """Return `sequences` with the checkpoint's spelling of the channels' names.

    Raises RequestError for a channel that is named twice.
    """
    by_folded_name = {normalize_case(channel): channel for channel in channels}
    renamed = {
        by_folded_name.get(normalize_case(name), name): text for name, text in sequences.items()
    }
    rule = "names a channel of the checkpoint twice"
    check(len(renamed) == len(sequences), "sequences", ", ".join(sequences), rule)
    return renamed


def _cases_in_folder(
    path: Path,
    sequences: Mapping[str, str],
    channels: Sequence[str],
    classes: Sequence[str],
    volume: int | None,
) -> list[InputCase]:
    """Return the cases of a cohort, or the single case of a patient's folder."""
    if not sequences and (slice_cases := tiff_folder.find_patients(path, channels)):
        return list(slice_cases)
    if cases := find_cohort(path, sequences, channels, classes, volume):
        return cases
    name = case_name(path)
    images, ignored = images_in(path, volume)

    def list_images(folder: Path) -> tuple[list[ImageVolume], list[str]]:
        return images_in(folder, volume)

    if cases := dicom_cohort.find_patients(path, images, sequences, channels, list_images):
        return cases
    rule = "holds no slices, NIfTI files or DICOM series that can be read"
    reason = f" ({ignored[0]})" if ignored else ""
    below = list_files(path, IMAGE_SUFFIXES) if not images else []
    remedy = f"select files below it, such as {below[0]}, by patterns: {PATTERN}" if below else ""
    check(bool(images), "input", path, rule + reason, remedy)
    case = make_case(name, assign_channels(str(path), images, sequences, channels), channels)
    case.notes = [*case.notes, *(f"ignored: {line}" for line in ignored)]
    return [case]


def _case_from_file(
    path: Path, sequences: Mapping[str, str], channels: Sequence[str], volume: int | None
) -> InputCase:
    """Return the case of a single file, which holds all channels of a stack or one sequence."""
    main = channels[main_channel(channels)]
    if not is_tiff(path):
        image = open_image(path, volume)
        return make_case(
            case_name(path), assign_channels(str(path), [image], sequences, channels), channels
        )
    check(
        volume is None,
        "volume",
        volume,
        "a TIFF stack has no volumes to choose from",
        "leave it out",
    )
    if sequences:
        names_file = list(sequences.values()) == [path.name]
        remedy = quote_setting(f"sequences.{main}", path.name)
        rule = "must name the one file of input"
        check(names_file, "sequences", ", ".join(sequences.values()), rule, f"as {remedy}")
        return tiff_stack.find_stack(case_name(path), {next(iter(sequences)): path}, channels)
    case = tiff_stack.find_stack(case_name(path), {main: path}, channels)
    # A stack with all channels is stored under "". Its name does not have to fit one channel.
    if main in case.stacks:
        check_names([path.name], main, channels, path)
    return case


def _case_from_list(
    source: Sequence[str | None],
    sequences: Mapping[str, str],
    channels: Sequence[str],
    volume: int | None,
) -> InputCase:
    """Return the case of a list with one file or folder per channel, all of one format."""
    input_text, order = _format_source(source), ", ".join(channels)
    rule = (
        f"{len(source)} files; "
        f"the checkpoint needs {len(channels)} sequences, in this order: {order}"
    )
    check(len(source) == len(channels), "input", input_text, rule, "null stands for a missing one")
    rule = "the order of input says which is which"
    check(not sequences, "sequences", ",".join(sequences), rule, "leave one of them out")
    pairs = zip(channels, source, strict=True)
    paths = {channel: Path(path) for channel, path in pairs if path is not None}
    check(bool(paths), "input", input_text, "holds no file")
    for channel, path in paths.items():
        named = channels_in(path.name, channels)
        rule = f"is given as {channel}, and named after {' and '.join(named)}"
        remedy = (
            f"the order is {order}; null stands for a missing one; rename the file if it is right"
        )
        check(not named or channel in named, "input", path, rule, remedy)
    first = next(iter(paths.values()))
    name = case_name(first) if len(paths) == 1 else _shared_name(list(paths.values()))
    stacks = [path for path in paths.values() if not path.is_dir() and is_tiff(path)]
    if stacks:
        rule = "TIFF and other formats; all must be of one format"
        check(len(stacks) == len(paths), "input", ",".join(map(str, paths.values())), rule)
        return tiff_stack.find_stack(name, paths, channels)
    images = {channel: image_at(path, volume) for channel, path in paths.items()}
    return make_case(name, images, channels)


def images_in(folder: Path, volume: int | None = None) -> tuple[list[ImageVolume], list[str]]:
    """Return the image files in a folder, the DICOM series in or below it, and ignored files.

    Each ignored file or group of files is one line of text. Raises RequestError, DataError.
    """
    files = sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(SUFFIXES) and file.is_file() and not file.name.startswith(".")
    )
    series, left_aside = dicom.find_series(folder)
    rule = "chooses within a file, and the folder holds DICOM series"
    remedy = f"choose with sequences.FLAIR='volume {volume}', or give one file as input"
    check(volume is None or bool(files), "volume", volume, rule, remedy)
    return [*(open_image(file, volume) for file in files), *series], left_aside


def is_tiff(path: Path) -> bool:
    """Return True if a file is a TIFF, by its name or its first bytes. Raises DataError."""
    has_tiff_name = path.name.lower().endswith(tiff_stack.SUFFIXES)
    return has_tiff_name or read_start(path, 4) in first_bytes.TIFF


def image_at(path: Path, volume: int | None = None) -> ImageVolume:
    """Return the image in a file, or the only one in a folder. Raises RequestError, DataError."""
    if not path.is_dir():
        return open_image(path, volume)
    images, _ = images_in(path, volume)
    rule = f"holds {len(images)} series; must be one where a folder stands for a sequence"
    check(len(images) == 1, "input", path, rule)
    return images[0]


def _shared_name(paths: Sequence[Path]) -> str:
    """Return the words that all the files' names begin with, else the name of their folder."""
    if len({path.name for path in paths}) == 1:
        return case_name(paths[0])
    # Only whole words count. The shared name of flair_1 and flair_12 is flair.
    words = [re.split(r"([_\-. ])", path.name) for path in paths]
    shared_words = itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*words, strict=False)
    )
    name = "".join(column[0] for column in shared_words).strip("_-. ")
    return name if name and name.isprintable() else case_name(paths[0].absolute().parent)


def _format_source(source: Source) -> str:
    """Return the value of `input` as a user types it."""
    return source if isinstance(source, str) else f"[{','.join(path or 'null' for path in source)}]"


def _with_path(source: Source, message: str) -> str:
    """Return a message that begins with the path it concerns, and names no path twice."""
    paths = [source] if isinstance(source, str) else [path for path in source if path is not None]
    for path in paths:
        if message.startswith(f"{Path(path)}: "):
            return f"input={path}: {message.removeprefix(f'{Path(path)}: ')}"
        if message.startswith(str(Path(path))):
            return message
    return f"input={_format_source(source)}: {message}"
