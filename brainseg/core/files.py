"""The one writer: a file is there complete under its name, or not at all (power cut, full disk and kill -9 included)."""

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error, rename it to `path` durably.

    The block writes and closes the temporary file. Then: fsync of the file, `os.replace`, fsync of the folder, so that after
    a power cut `path` holds either the old bytes or the new ones. After an error the temporary file is removed and `path`
    is left as it was. A symbolic link stays one: the file that it leads to is replaced, and the temporary file lies beside that.
    Raises OSError (naming the file) when the disk is full or the folder is not writable.
    """
    temporary = _beside_target(path, str(os.getpid()))
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if (
            isinstance(error, OSError) and error.errno is not None and error.filename is None
        ):  # a write, unlike an open
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically and durably."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, atomically and durably."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` to `path` as indented JSON, atomically and durably; refuses NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def remove_partial(folder: str | Path) -> None:
    """Remove what a kill left half written below `folder`; call it only where nobody else writes."""
    for path in Path(folder).rglob(".*.partial*"):
        path.unlink()


def remove_stale(path: str | Path, seconds: float = 3600) -> None:
    """Remove what killed processes left half written of this file, untouched for so long: a younger one may be another's work.

    With it goes what lies beside it under a longer name, as SQLite's journal; 0 seconds: the caller holds a lock.
    """
    pattern = _partial(Path(glob.escape(Path(path).name)), "*") + "*"
    for left in target(path).parent.glob(pattern):
        if time.time() - left.stat().st_mtime >= seconds:
            left.unlink()


def target(path: str | Path) -> Path:
    """Return the file that a symbolic link leads to, whether it exists or not; any other path is returned as it is."""
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename within a folder, replacing `target`, durably."""
    os.replace(source, target)
    _fsync(Path(target).parent)


def _beside_target(path: str | Path, who: str) -> Path:
    """Return the temporary path of a writer. Its name is made of that of the link, whose suffix says the format."""
    return target(path).with_name(_partial(Path(path), who))


def _partial(path: Path, who: str) -> str:
    """The suffix is kept last because writers such as matplotlib choose the format by it; .nii.gz is one."""
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    return f".{path.name.removesuffix(suffix)}.{who}.partial{suffix}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
