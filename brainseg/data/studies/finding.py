"""What `input=` means: a cohort or a patient of TIFF slices, a TIFF stack, NIfTI files, a folder of DICOM series.

    input=kaggle_3m                                       every patient of it
    input=scan.tif                                        a page a slice, the sequences as its samples
    input=flair.nii.gz                                    one sequence: FLAIR, or the one that the checkpoint takes
    input=[pre.nii.gz,flair.nii.gz,post.nii.gz]           in the order of the checkpoint's channels; null: missing
    input=folder sequences.FLAIR=t2_flair.nii.gz          by file, subfolder, or part of a DICOM series description
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
        return [_files({name: Path(path) for name, path in zip(channels, source, strict=True) if path is not None}, channels)]
    except DataError as error:  # found in names and headers, before anything is created: the request is wrong
        shown = source if isinstance(source, str) else f"[{','.join(path or 'null' for path in source)}]"
        raise RequestError(f"input={shown}: {error}") from error


def check_input(source: str | Sequence[str | None]) -> None:
    """Refuse a path that is not there. Raises RequestError."""
    for path in [source] if isinstance(source, str) else source:
        check(path is None or Path(path).exists(), "input", path, "no such file or folder")


def _folder(path: Path, sequences: Mapping[str, str], channels: Sequence[str]) -> list[Study]:
    if not sequences and (found := kaggle.find(path, channels)):
        return list(found)
    return [simpleitk.find(_name(path), simpleitk.in_folder(path), sequences, channels)]


def _file(path: Path, sequences: Mapping[str, str], channels: Sequence[str]) -> Study:
    """A file alone: all channels of a TIFF in colour, else the one sequence that says most."""
    check(not sequences, "sequences", ",".join(sequences), "needs a folder to look in", "as input=FOLDER")
    return _files({channels[main_channel(channels)]: path}, channels)


def _files(paths: dict[str, Path], channels: Sequence[str]) -> Study:
    """One file or folder a sequence, all of one kind."""
    check(bool(paths), "input", "[]", "holds no file")
    first = next(iter(paths.values()))
    name = _name(first if len(paths) == 1 else first.absolute().parent)
    stacks = [path for path in paths.values() if path.suffix.lower() in tiff.SUFFIXES]
    check(len(stacks) in (0, len(paths)), "input", ",".join(map(str, paths.values())), "TIFF and other formats; all must be of one format")
    if stacks:
        return tiff.find(name, paths, channels)
    return simpleitk.of_paths(name, paths, channels)


def _name(path: Path) -> str:
    """What a study is called: its folder, or its file without .nii.gz and the like."""
    path = path.absolute()
    name = path.name.removesuffix(".gz") if path.is_file() else f"{path.name}."
    name = name.rpartition(".")[0] or path.name
    check(name.isprintable() and name not in ("", ".", ".."), "input", ascii(name), "no name for a folder of results", "rename it")
    return name
