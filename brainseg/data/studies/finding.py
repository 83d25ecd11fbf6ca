"""What `input=` means: a cohort or a patient of TIFF slices, a TIFF stack, NIfTI files, a folder of DICOM series.

    input=kaggle_3m                                       every patient of it
    input=scan.tif                                        a page a slice, the sequences as its samples
    input=flair.nii.gz                                    one sequence: FLAIR, or the one that the checkpoint takes
    input=[pre.nii.gz,flair.nii.gz,post.nii.gz]           in the order of the checkpoint's channels; null: missing
    input=folder sequences.FLAIR=t2_flair.nii.gz          by file, subfolder, or part of a DICOM series description
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg.data.store import FOREIGN, is_store
from brainseg.data.studies import kaggle, simpleitk, tiff
from brainseg.data.studies.study import Study
from brainseg.data.volume import main_channel
from brainseg.errors import DataError, RequestError, check


def find(source: str | Sequence[str | None], sequences: Mapping[str, str], channels: Sequence[str]) -> list[Study]:
    """The studies that a request means, judged by names and headers; pixels are read later.

    `channels` are the sequences that the checkpoint needs. Raises RequestError for whatever is wrong with them.
    """
    try:
        if isinstance(source, str):
            return _folder(Path(source), sequences, channels) if Path(source).is_dir() else [_file(Path(source), sequences, channels)]
        rule = f"{len(source)} files; the checkpoint needs {len(channels)} sequences, in this order: {', '.join(channels)}"
        check(len(source) == len(channels), "input", f"[{','.join(map(str, source))}]", rule, "null stands for a missing one")
        check(not sequences, "sequences", ",".join(sequences), "the order of input says which is which", "leave one of them out")
        paths = {name: Path(path) for name, path in zip(channels, source, strict=True) if path is not None}
        _check_order(paths, channels)
        return [_files(paths, channels)]
    except DataError as error:  # found in names and headers, before anything is created: the request is wrong
        shown = source if isinstance(source, str) else f"[{','.join(path or 'null' for path in source)}]"
        raise RequestError(f"input={shown}: {error}") from error


def check_input(source: str | Sequence[str | None]) -> None:
    """Refuse a path that is not there. Raises RequestError."""
    for path in [source] if isinstance(source, str) else source:
        check(path is None or Path(path).exists(), "input", path, "no such file or folder")
        if path is not None and path.endswith((".h5", ".hdf5")):
            check(is_store(path), "input", path, f"no scan, and {FOREIGN}", "save the scan as NIfTI, TIFF or DICOM")
            check(False, "input", path, "a file of prepared slices, not a scan",
                  f"brainseg.evaluate scores its patients, with data.path={path}")


def _folder(path: Path, sequences: Mapping[str, str], channels: Sequence[str]) -> list[Study]:
    if not sequences and (found := kaggle.find(path, channels)):
        return list(found)
    return [simpleitk.find(_name(path), simpleitk.in_folder(path), sequences, channels)]


def _file(path: Path, sequences: Mapping[str, str], channels: Sequence[str]) -> Study:
    """A file alone: all channels of a TIFF in colour, else the one sequence that says most."""
    check(not sequences, "sequences", ",".join(sequences), "needs a folder to look in", "as input=FOLDER")
    simpleitk.check_alone(path.name, path, channels)
    return _files({channels[main_channel(channels)]: path}, channels)


def _files(paths: dict[str, Path], channels: Sequence[str]) -> Study:
    """One file or folder a sequence, all of one kind."""
    check(bool(paths), "input", "[]", "holds no file")
    first = next(iter(paths.values()))
    name = _name(first) if len(paths) == 1 else _shared(list(paths.values()))
    stacks = [path for path in paths.values() if path.suffix.lower() in tiff.SUFFIXES]
    check(len(stacks) in (0, len(paths)), "input", ",".join(map(str, paths.values())), "TIFF and other formats; all must be of one format")
    if stacks:
        return tiff.find(name, paths, channels)
    return simpleitk.of_paths(name, paths, channels)


def _shared(paths: Sequence[Path]) -> str:
    """What several files of one study are called: what their names begin with, as P1 of P1_pre and P1_post, else their folder."""
    words = [re.split(r"([_\-. ])", path.name) for path in paths]  # and what stands between them
    common = "".join(same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))).strip("_-. ")
    alike = len({path.name for path in paths}) == 1
    return common if common.isprintable() and common and not alike else _name(paths[0] if alike else paths[0].absolute().parent)


def _check_order(paths: Mapping[str, Path], channels: Sequence[str]) -> None:
    """Refuse a file that is named after another sequence than the one it is given as: in the wrong order all masks would be wrong."""
    for given, path in paths.items():
        bears = [name for name in channels if simpleitk.plain(name) in simpleitk.plain(path.name)]
        check(not bears or given in bears, "input", path, f"is given as {given}, and named after {' and '.join(bears)}",
              f"the order is {', '.join(channels)}; null stands for a missing one; rename the file if it is right")


def _name(path: Path) -> str:
    """What a study is called: its folder, or its file without .nii.gz and the like."""
    path = path.absolute()
    name = path.name.removesuffix(".gz") if path.is_file() else f"{path.name}."
    name = name.rpartition(".")[0] or path.name
    check(name.isprintable() and name not in ("", ".", ".."), "input", ascii(name), "no name for a folder of results", "rename it")
    return name
