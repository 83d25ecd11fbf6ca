"""Files as streams of bytes, which are unpacked if the content is compressed, for any suffix."""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from brainseg.core.errors import DataError

# Number of bytes that are unpacked at a time.
CHUNK = 2**20
GZIP, BZIP2 = b"\x1f\x8b", b"BZh"


@contextmanager
def open_unpacked(path: Path) -> Iterator[BufferedIOBase]:
    """Yield the file as a stream of unpacked bytes. Raises DataError naming the file."""
    # Opening a pipe would wait for a process at its other end.
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"{path}: is {kind}; give a file")
    try:
        with open(path, "rb") as file:
            start = file.read(3)
            file.seek(0)
            if start[:2] == GZIP:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            elif start == BZIP2:
                with bz2.BZ2File(file) as stream:
                    yield stream
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged; copy or download it again") from error
    except OSError as error:
        # The decoder of bzip2 raises OSError without a number for damaged data.
        reason = error.strerror or "truncated or damaged; copy or download it again"
        raise DataError(f"{path}: {reason}") from error


def read_start(path: Path, count: int) -> bytes:
    """Return the first `count` unpacked bytes, fewer for a shorter file. Raises DataError."""
    with open_unpacked(path) as stream:
        return stream.read(count)


def check_length(path: Path, needed: int) -> None:
    """Raise DataError if the file, unpacked, is shorter than `needed` bytes.

    Packed files are unpacked to their end, where the checksum is, but at most `CHUNK` bytes beyond
    `needed`, so that a small file cannot occupy the machine for hours.
    """
    with open_unpacked(path) as stream:
        length = 0
        while length < needed + CHUNK and (chunk := stream.read(CHUNK)):
            length += len(chunk)
    if length < needed:
        raise DataError(
            f"{path}: truncated: it holds {length:,} of the {needed:,} bytes "
            "that its header asks for; copy or download it again"
        )


def read_at(path: Path, offset: int, count: int) -> bytes:
    """Return `count` unpacked bytes from `offset`. Raises DataError if the file is shorter."""
    with open_unpacked(path) as stream:
        stream.seek(offset)
        content = stream.read(count)
    if len(content) < count:
        raise DataError(f"{path}: truncated since its header was read; copy or download it again")
    return content
