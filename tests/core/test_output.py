"""A reader that leaves, or a terminal that closes, ends no command; a full disk still does."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

PRINTING = """
import sys
from brainseg.core.output import ignoring_closed_output
with ignoring_closed_output():
    for number in range(20_000):
        print("line", number)
        print("also", number, file=sys.stderr)
open("finished", "w").write("yes")
"""


@pytest.mark.parametrize(
    "streams", ["2>/dev/null | head -1", "2>&1 >/dev/null | head -1", "2>&1 | head -1"]
)
def test_a_reader_that_leaves_ends_no_command(tmp_path: Path, streams: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    (tmp_path / "printing.py").write_text(PRINTING)
    script = f"set -o pipefail; '{sys.executable}' printing.py {streams}"
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, len(ended.stdout.splitlines()), ended.stderr) == (0, 1, "")
    assert (tmp_path / "finished").is_file()


def test_a_terminal_that_closes_ends_no_command(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING],
        cwd=tmp_path,
        env=environment,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.read(ours, 100)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "finished").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_is_still_an_error(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", PRINTING],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    assert ended.returncode != 0 and not (tmp_path / "finished").exists()


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"Wa\\u0142\\u0119sa \\xf6"), ("latin-1", b"Wa\\u0142\\u0119sa \xf6")],
)
def test_a_name_that_the_terminal_cannot_write_is_escaped(
    tmp_path: Path, encoding: str, written: bytes
) -> None:
    """Locales of older clusters are Latin-1 or plain ASCII, where a patient's name ended the command after its work was done."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONIOENCODING": encoding,
    }
    script = "from brainseg.core.output import ignoring_closed_output\n"
    script += "with ignoring_closed_output():\n    print('Wa\\u0142\\u0119sa \\xf6')"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, written, b"")
