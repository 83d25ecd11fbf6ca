"""Standard output that survives the loss of its reader.

The reader of a pipe may exit early, for example `| head -5`, and a terminal may close. Neither
ends a run. Characters that the terminal's encoding lacks, in the name of a patient or folder,
are written as escapes.
"""

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

# EPIPE: the pipe has no reader. EIO: the terminal was closed.
CLOSED_ERRORS = (errno.EPIPE, errno.EIO)


class UnreadStream:
    """A text stream that drops its output once the reader is gone.

    Other errors, such as that of a full disk, are raised.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` and return its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write the buffered text."""
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
        """Redirect the stream to the null device, or raise `error` if the reader is not gone."""
        if error.errno not in CLOSED_ERRORS:
            raise error
        # The file descriptor itself is redirected, so that this also holds for child processes
        # and for Python's last flush.
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, self._stream.fileno())
        os.close(null_device)


class _TerminalHandler(logging.Handler):
    """A handler that prints above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record on stdout."""
        tqdm.write(self.format(record), file=sys.stdout)


class _TerminalFilter(logging.Filter):
    """A filter that passes each warning once, and nothing of level ERROR.

    The jobs of a sweep repeat their warnings. Only a failed run logs an ERROR, which is its
    traceback, and the command prints the reason of the failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be printed."""
        text = record.getMessage()
        is_repeated = record.levelno == logging.WARNING and text in self._printed
        self._printed.add(text)
        return record.levelno < logging.ERROR and not is_repeated


def print_log(level: int = logging.INFO) -> None:
    """Print the log from `level` on to stdout, without time and level.

    A single run uses INFO. A sweep uses WARNING, because it prints lines of its own for each job.
    DEBUG prints everything, including epochs, tracebacks and repeated warnings. The log of a run
    contains everything in any case.
    """
    handler = _TerminalHandler()
    handler.setLevel(level)
    if level > logging.DEBUG:
        handler.addFilter(_TerminalFilter())
    # Other libraries print their warnings only.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("brainseg").setLevel(logging.DEBUG)


@contextmanager
def ignoring_closed_output() -> Iterator[None]:
    """Replace stdout and stderr by `UnreadStream` within the block.

    When the block ends, both are flushed and restored. Characters that their encoding lacks are
    written as escapes, also after the block.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.reconfigure(errors="backslashreplace")
            except OSError as error:
                # A pipe that was opened like a file has no position and cannot be reconfigured.
                # It keeps its own error handler.
                if error.errno != errno.ESPIPE:
                    raise
    unread_streams: Any = UnreadStream(sys.stdout), UnreadStream(sys.stderr)
    sys.stdout, sys.stderr = unread_streams
    try:
        yield
    finally:
        for stream in unread_streams:
            stream.flush()
        sys.stdout, sys.stderr = streams
