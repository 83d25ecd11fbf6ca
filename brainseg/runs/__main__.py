"""List runs with their state and scores, or compare the settings of two runs.

    python -m brainseg.runs                                  # every run below runs/, latest last
    python -m brainseg.runs sort=test/dice state=finished    # the best last
    python -m brainseg.runs sweep=last                       # the jobs of the latest sweep
    python -m brainseg.runs diff=[runs/a,runs/b]             # the settings in which two runs differ
    python -m brainseg.runs format=csv > runs.csv

    root     the folder of the runs (runs)
    sort     created, run, state, epoch, val/dice, test/dice or left
    state    only runs in this state: running, finished, failed, killed or interrupted
    sweep    only the jobs of this sweep: its id, or last
    diff     two run folders
    format   table or csv

The table is read from the run folders, so that it needs no MLflow. `settings` are those typed
settings in which the listed runs differ. `left` is the estimated time until the end of a run.
"""

import sys
from pathlib import Path

from brainseg.config.overrides import values_by_setting
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.output import ignoring_closed_output
from brainseg.reports import tables
from brainseg.runs import listing
from brainseg.runs.find import resolve_run
from brainseg.runs.listing import RunSummary
from brainseg.runs.sweep_record import last_sweep, sweep_run_folders

DEFAULTS = {
    "root": "runs",
    "sort": "created",
    "state": "",
    "sweep": "",
    "diff": "",
    "format": "table",
}
SORT_KEYS = ("created", "run", "state", "epoch", "val/dice", "test/dice", "left")
STATES = ("", "running", "finished", "failed", "killed", "interrupted")


def main() -> None:
    """Run `python -m brainseg.runs` or `brainseg runs`."""
    sys.exit(run(sys.argv[1:]))


@ignoring_closed_output()
def run(arguments: list[str]) -> int:
    """Print the table of the requested runs and return the exit code."""
    if {"-h", "--help", "help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        print(_describe(_settings(arguments)))
    except (RequestError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    return 0


def _settings(arguments: list[str]) -> dict[str, str]:
    """Return the settings of the request. Raises RequestError."""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        check(
            bool(equals) and name in DEFAULTS,
            name,
            argument,
            "is not a setting of runs",
            f"choose from {', '.join(DEFAULTS)}",
        )
    settings = DEFAULTS | values_by_setting(arguments)
    for name, choices in (("sort", SORT_KEYS), ("state", STATES), ("format", ("table", "csv"))):
        listed = ", ".join(choice for choice in choices if choice)
        check(settings[name] in choices, name, settings[name], f"must be one of {listed}")
    return settings


def _describe(settings: dict[str, str]) -> str:
    """Return the table that the settings ask for. Raises RequestError and DataError."""
    if settings["diff"]:
        return _describe_difference(settings["diff"])
    summaries = [listing.read_summary(path) for path in _run_folders(settings)]
    chosen = [run for run in summaries if settings["state"] in ("", run.state)]
    if not chosen:
        return f"0 of {len(summaries)} runs are {settings['state']}"
    chosen.sort(key=lambda run: _sort_key(run, settings["sort"]))
    rows = listing.table_rows(chosen)
    return listing.format_csv(rows) if settings["format"] == "csv" else listing.format_rows(rows)


def _run_folders(settings: dict[str, str]) -> list[Path]:
    """Return the run folders of the request. Raises RequestError if there is none."""
    root = Path(settings["root"])
    if settings["sweep"]:
        name = last_sweep(root) if settings["sweep"] == "last" else settings["sweep"]
        return sweep_run_folders(name, root)
    folders = sorted(file.parent for file in root.rglob("run.json"))
    check(bool(folders), "root", root, "no run is below it", "name the folder of your runs")
    return folders


def _describe_difference(value: str) -> str:
    """Return a table of the settings in which two runs differ. Raises RequestError."""
    names = [name.strip() for name in value.strip("[]").split(",")]
    check(len(names) == 2, "diff", value, "must name two runs", "write diff=[runs/a,runs/b]")
    first, second = (resolve_run(name, "diff") for name in names)
    differences = listing.compare_settings(first, second)
    if not differences:
        return "the two runs have the same settings"
    return tables.format_table(("setting", str(first), str(second)), differences)


def _sort_key(run: RunSummary, name: str) -> tuple[bool, float, str]:
    """Return a key that puts runs without a value first, and the largest value last."""
    values = {
        "created": run.created,
        "epoch": run.epochs,
        "val/dice": run.val_dice,
        "test/dice": run.test_dice,
        "left": run.seconds_left,
    }
    text = {"run": str(run.path), "state": run.state}.get(name, str(run.path))
    value = values.get(name, 0)
    return value is not None, float(value or 0), text


if __name__ == "__main__":
    main()
