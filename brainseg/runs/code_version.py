"""Which code a run was made with: version, commit, uncommitted diff, and a hash of the package's sources."""

import hashlib
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from brainseg import __version__

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Code:
    """`sha256` is over the package's own .py files: it covers commit and diff, and works where there is no git."""

    version: str
    commit: str
    dirty: bool
    diff: str
    sha256: str


@cache
def code_version() -> Code:
    """Read once a process: jobs of a sweep that run in one process share it."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    commit = _git("rev-parse", "HEAD").strip()
    # Plain git diff rewrites the checkout's index, and runs what its configuration names.
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
    """What git prints for the checkout that holds the package; nothing without git or outside a checkout."""
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
