"""Bring MLflow up to date with run folders, for example after an outage of the tracking server.

    python -m brainseg.sync                                       # every run under runs/
    python -m brainseg.sync runs/baseline runs/wider              # these
    python -m brainseg.sync runs tracking.uri=http://server:5000  # into another store

A repetition changes nothing. The exit code is 1 if a run could not be sent, 2 if the request was
wrong.
"""

import sys
from pathlib import Path

from brainseg.core.errors import RequestError, check, shorten_error
from brainseg.tracking.client import tracking_uri
from brainseg.tracking.refusals import RefusedError, remedy_of
from brainseg.tracking.upload import upload_run


def main() -> None:
    """Run the command `python -m brainseg.sync`, also called `brainseg sync`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Upload every requested run folder, print one line per folder, and return the exit code."""
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
    """Return the run folders under the paths, and the store that overrides theirs.

    Raises RequestError.
    """
    paths, uri = [], None
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "tracking.uri" and equals:
            uri = tracking_uri(value)
        else:
            # The name of a folder may contain an equals sign.
            is_path = not equals or Path(argument).exists()
            remedy = "it takes run folders, and tracking.uri=URI"
            check(is_path, key, value, "is not a setting of sync", remedy)
            paths.append(Path(argument))
    folders = [folder for path in paths or [Path("runs")] for folder in run_folders(path)]
    return list(dict.fromkeys(folders)), uri


def run_folders(path: Path) -> list[Path]:
    """Return `path` itself if it is a run's folder, else all run folders below it.

    Raises RequestError if there is none.
    """
    folders = (
        [path]
        if (path / "run.json").exists()
        else sorted(file.parent for file in path.rglob("run.json"))
    )
    rule = "contains no run (no run.json in it or below)"
    check(bool(folders), "folder", path, rule, "name a run's folder or a folder above it")
    return folders


def sync(folder: Path, uri: str | None) -> bool:
    """Upload one folder and print its link. If that fails, print the reason and return False."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        print(f"{folder}: {upload_run(folder, uri)}")
        return True
    except (MlflowException, SQLAlchemyError, OSError, ValueError, KeyError) as error:
        reason, remedy = shorten_error(error, None), remedy_of(error)
        # A refusal is a sentence of this package, with its remedy. Other texts may fill a page.
        reason = reason if isinstance(error, RefusedError) else reason[:200]
        if remedy is None and uri is None:
            remedy = "for another store than that in its run.json, add tracking.uri=URI"
        print(f"{folder}: failed: {reason}" + (f"; {remedy}" if remedy else ""), file=sys.stderr)
        return False


if __name__ == "__main__":
    main()
