"""Output that nobody reads any more must not end a run: the reader of a pipe may leave, as `| head -5`, and a terminal may close.

Nor must a patient's or a folder's name that the terminal's encoding lacks: such characters are written as escapes.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a terminal that was closed


class UnreadStream:
    """A text stream that drops what is written once its reader is gone; other errors, as of a full disk, are raised."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`; returns its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write what is still held back."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def writelines(self, lines: Any) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        if error.errno not in GONE:
            raise error
        # The file itself leads nowhere from now on, also for processes that this one starts and for Python's last flush.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def ignoring_closed_output() -> Iterator[None]:
    """Inside, stdout and stderr are `UnreadStream`; when the block ends, both are flushed and put back.

    Characters that their encoding lacks are written as escapes, for good.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.reconfigure(errors="backslashreplace")
            except OSError as error:
                # A pipe that was opened like a file has no position, and keeps its own way with characters.
                if error.errno != errno.ESPIPE:
                    raise
    unread: Any = UnreadStream(sys.stdout), UnreadStream(sys.stderr)
    sys.stdout, sys.stderr = unread
    try:
        yield
    finally:
        for stream in unread:
            stream.flush()
        sys.stdout, sys.stderr = before
