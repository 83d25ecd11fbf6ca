"""Brings MLflow up to date with run folders, as after a training whose tracking server was away.

    python -m brainseg.sync                                       # every run under runs/
    python -m brainseg.sync runs/baseline runs/wider              # these
    python -m brainseg.sync runs tracking.uri=http://server:5000  # into another store than the one they were started with

Repeating it changes nothing. Exit code 1 if a run could not be brought over, 2 if the request was wrong.
"""

import sys
from pathlib import Path

from brainseg.core.errors import RequestError, check
from brainseg.tracking.client import tracking_uri
from brainseg.tracking.mirror import replicate
from brainseg.tracking.refusals import remedy_of


def main() -> None:
    """Entry point of `python -m brainseg.sync` and `brainseg sync`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Replicate every run folder asked for, with a line each; the exit code."""
    if {"-h", "--help", "help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        folders, uri = request(arguments)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    failed = sum(not sync(folder, uri) for folder in folders)
    print(
        f"{len(folders) - failed} of {len(folders)} runs are in MLflow"
        + (f", {failed} failed" if failed else "")
    )
    return 1 if failed else 0


def request(arguments: list[str]) -> tuple[list[Path], str | None]:
    """The run folders under the paths given, and the store that overrides theirs. Raises RequestError."""
    paths, uri = [], None
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "tracking.uri" and equals:
            uri = tracking_uri(value)
        else:
            known = not equals or Path(argument).exists()
            check(
                known,
                key,
                value,
                "is not a setting of sync",
                "it takes run folders, and tracking.uri=URI",
            )
            paths.append(Path(argument))
    folders = [folder for path in paths or [Path("runs")] for folder in run_folders(path)]
    return list(dict.fromkeys(folders)), uri


def run_folders(path: Path) -> list[Path]:
    """`path` itself if it is a run's folder, else all those below it. Raises RequestError where there is none."""
    found = (
        [path]
        if (path / "run.json").exists()
        else sorted(file.parent for file in path.rglob("run.json"))
    )
    check(
        bool(found),
        "folder",
        path,
        "holds no run (no run.json in it or below)",
        "name a run's folder or one above it, as runs",
    )
    return found


def sync(folder: Path, uri: str | None) -> bool:
    """Replicate one folder and print where it is; False, with the reason printed, if that failed."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        print(f"{folder}: {replicate(folder, uri)}")
        return True
    except (MlflowException, SQLAlchemyError, OSError, ValueError, KeyError) as error:
        reason, remedy = " ".join(str(error).split())[:300], remedy_of(error)
        print(f"{folder}: failed: {reason}" + (f"; {remedy}" if remedy else ""), file=sys.stderr)
        return False


if __name__ == "__main__":
    main()
