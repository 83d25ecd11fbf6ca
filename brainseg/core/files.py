"""Atomic, durable file writing.

A file is complete under its name or absent, also after a power cut, a full disk or kill -9.
"""

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# False on Windows, which opens no folders.
HAS_FOLDER_DESCRIPTORS = hasattr(os, "O_DIRECTORY")


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` durably after the block.

    The block writes and closes the temporary file. The file is then synced, renamed with
    `os.replace`, and its folder is synced. After a power cut `path` holds either the old bytes
    or the new ones. After an error the temporary file is removed and `path` is unchanged.
    A symbolic link is kept: the file that it points to is replaced, and the temporary file lies
    beside that file.

    Raises OSError (naming the file) when the disk is full or the folder is not writable.
    """
    temporary = _temporary_path(path, str(os.getpid()))
    path = resolve_link(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        _fsync(temporary)
        _replace(temporary, path)
        _fsync(path.parent)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        # A failed write, unlike a failed open, does not name the file.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
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
    """Write `content` to `path` as indented JSON, atomically and durably.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def remove_partial(folder: str | Path) -> None:
    """Remove the temporary files of killed writers below `folder`.

    Call it only where no other process writes.
    """
    for path in Path(folder).rglob(".*.partial*"):
        path.unlink()


def remove_stale(path: str | Path, seconds: float = 3600) -> None:
    """Remove the temporary files that killed writers of `path` have left.

    A file changed within the last `seconds` is kept, because another process may be writing it.
    A caller that holds a lock passes 0. Files beside it with a longer name, such as SQLite's
    journal, are removed as well.
    """
    pattern = _partial_name(Path(glob.escape(Path(path).name)), "*") + "*"
    for leftover in resolve_link(path).parent.glob(pattern):
        if time.time() - leftover.stat().st_mtime >= seconds:
            leftover.unlink()


def resolve_link(path: str | Path) -> Path:
    """Return the file that a symbolic link points to, whether or not the file exists.

    Any other path is returned unchanged.
    """
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file within a folder durably, replacing `target`."""
    _replace(Path(source), Path(target))
    _fsync(Path(target).parent)


def _temporary_path(path: str | Path, writer: str) -> Path:
    """Return the temporary path of a writer.

    The name is built from the name of the link, because its suffix determines the format.
    """
    return resolve_link(path).with_name(_partial_name(Path(path), writer))


def _partial_name(path: Path, writer: str) -> str:
    """Return the name of a temporary file.

    The suffix stays last because writers such as matplotlib choose the format by it. The suffix
    .nii.gz counts as one.
    """
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    return f".{path.name.removesuffix(suffix)}.{writer}.partial{suffix}"


def _replace(source: Path, target: Path) -> None:
    """Rename a file, replacing `target`.

    Windows refuses this while another process or thread reads `target`, which takes milliseconds.
    The renaming is tried again there for about a second.
    """
    for _ in range(0 if HAS_FOLDER_DESCRIPTORS else 20):
        with suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(0.05)
    os.replace(source, target)


def _fsync(path: Path) -> None:
    """Force the content of a file, or the entries of a folder, to the disk.

    Windows syncs only files that are open for writing, and no folders.
    """
    if not HAS_FOLDER_DESCRIPTORS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if HAS_FOLDER_DESCRIPTORS else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
