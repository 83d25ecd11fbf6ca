"""The code of a run: version, commit, uncommitted diff, and a hash of the sources."""

import hashlib
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from brainseg import __version__

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Code:
    """Version of the code.

    `sha256` is the hash of the package's own .py files. It covers commit and diff, and is available
    without git, too.
    """

    version: str
    commit: str
    dirty: bool
    diff: str
    sha256: str


@cache
def code_version() -> Code:
    """Return the version of the code, read once per process and shared by all its jobs."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    commit = _git("rev-parse", "HEAD").strip()
    # Without these options `git diff` rewrites the checkout's index, and runs programs that the
    # configuration of git names.
    plain = (
        "-c",
        "diff.autoRefreshIndex=false",
        "diff",
        "--no-ext-diff",
        "--no-textconv",
        "HEAD",
        "--",
        "brainseg",
        "conf",
    )
    diff = _git(*plain) if commit else ""
    return Code(__version__, commit, bool(diff), diff, digest.hexdigest())


def _git(*arguments: str) -> str:
    """Return the output of a git command on the package's checkout.

    The text is empty without git or outside a checkout.
    """
    # Without this check git would search the parent folders for another repository.
    if not (PACKAGE.parent / ".git").exists():
        return ""
    try:
        return subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return ""
