"""A trap for hostile input, which goes off when a payload runs; and what a refusal is.

Its folder `executed` appears, or Python's audit reports what a payload needs (a process, a connection, an unpickled name, the
import of `evil`). That the traps do go off is tested, too.
"""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainseg.core.errors import DataError, RequestError

REFUSED = (DataError, RequestError)
AUDITED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "urllib.Request",
    "webbrowser.open",
)


class Trap:
    """Where a payload shows that it ran."""

    armed: "Trap | None" = None

    def __init__(self, folder: Path) -> None:
        self.executed, self.pickled, self.heard = (
            folder / "executed",
            folder / "evil.pickle",
            list[str](),
        )
        self.pickled.write_bytes(pickle.dumps(Payload(os.mkdir, str(self.executed))))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(self.executed)!r})\n")

    def __enter__(self) -> "Trap":
        Trap.armed = self
        return self

    def __exit__(self, *error: object) -> None:
        Trap.armed = None

    @property
    def went_off(self) -> list[str]:
        return self.heard + (["the payload ran"] if self.executed.exists() else [])


def _listen(event: str, arguments: tuple) -> None:
    if Trap.armed is not None and (
        event in AUDITED or (event == "import" and str(arguments[0]).split(".")[0] == "evil")
    ):
        Trap.armed.heard.append(f"{event} {arguments[:2]}"[:200])


sys.addaudithook(_listen)  # for the whole process: Python knows no way to take one away


class Payload:
    """Pickles as a call."""

    def __init__(self, call: Callable, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


def refused(read: Callable[[], Any]) -> str:
    """The one line that says why; "" if it was not refused."""
    try:
        read()
    except REFUSED as error:
        return "" if "\n" in str(error) else str(error)
    return ""
