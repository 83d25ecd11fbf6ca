"""List runs with their state and scores, or compare the settings of two runs.

    python -m brainseg.runs                                  # every run below runs/, latest last
    python -m brainseg.runs sort=test/dice state=finished    # the best last
    python -m brainseg.runs sweep=last                       # the jobs of the latest sweep
    python -m brainseg.runs diff=[runs/a,runs/b]             # the settings in which two runs differ
    python -m brainseg.runs format=csv > runs.csv
    python -m brainseg.runs run=runs/a note="lr too high"    # write a note, or tags=[pilot,paper]
    python -m brainseg.runs tag=pilot                        # the runs with this tag

    root     the folder of the runs (runs)
    sort     created, run, state, epoch, val/dice, test/dice or left
    state    only runs in this state: running, finished, failed, killed or interrupted
    sweep    only the jobs of this sweep: its id, or last
    diff     two run folders
    format   table or csv
    tag      only runs with this tag
    run      folder or MLflow ID of the run that gets the note or the tags
    note     text that replaces the note of the run; note= removes it
    tags     list that replaces the tags of the run; tags=[] removes them

The table is read from the run folders, so that it needs no MLflow. `settings` are those typed
settings in which the listed runs differ. `left` is the estimated time until the end of a run.
"""

import sys
from pathlib import Path

from brainseg.config.fields import check_tags
from brainseg.config.overrides import values_by_setting
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.output import ignoring_closed_output
from brainseg.reports import tables
from brainseg.runs import listing
from brainseg.runs.find import resolve_last, resolve_run
from brainseg.runs.listing import RunSummary
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import last_sweep, sweep_run_folders

DEFAULTS = {
    "root": "runs",
    "sort": "created",
    "state": "",
    "sweep": "",
    "diff": "",
    "format": "table",
    "tag": "",
    "run": "",
}
ANNOTATIONS = ("note", "tags")
SETTINGS = (*DEFAULTS, *ANNOTATIONS)
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
            bool(equals) and name in SETTINGS,
            name,
            argument,
            "is not a setting of runs",
            f"choose from {', '.join(SETTINGS)}",
        )
    settings = DEFAULTS | values_by_setting(arguments)
    requested = [name for name in ANNOTATIONS if name in settings]
    check(
        bool(requested) == bool(settings["run"]),
        "run",
        settings["run"] or "null",
        "belongs to note and tags, which are written into one run",
        'write run=runs/RUN note="...", or tag=NAME to list the runs with a tag',
    )
    for name, choices in (("sort", SORT_KEYS), ("state", STATES), ("format", ("table", "csv"))):
        listed = ", ".join(choice for choice in choices if choice)
        check(settings[name] in choices, name, settings[name], f"must be one of {listed}")
    return settings


def _describe(settings: dict[str, str]) -> str:
    """Return the table that the settings ask for. Raises RequestError and DataError."""
    if settings["diff"]:
        return _describe_difference(settings["diff"])
    if settings["run"]:
        return _annotate(settings)
    summaries = [listing.read_summary(path) for path in _run_folders(settings)]
    chosen = [
        run
        for run in summaries
        if settings["state"] in ("", run.state)
        and (not settings["tag"] or settings["tag"] in run.tags)
    ]
    if not chosen:
        filters = (settings["state"], settings["tag"] and f"tagged {settings['tag']}")
        return f"0 of {len(summaries)} runs are {' and '.join(filter(None, filters))}"
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


def _annotate(settings: dict[str, str]) -> str:
    """Write note and tags into the run, send them to MLflow, and return what the run now has.

    Raises RequestError for a wrong run or tag.
    """
    folder = RunFolder(resolve_run(resolve_last(settings["run"], "run"), "run"))
    note = settings.get("note")
    tags = None
    if "tags" in settings:
        words = settings["tags"].strip().removeprefix("[").removesuffix("]")
        tags = [word.strip() for word in words.split(",")] if words.strip() else []
        check_tags(tags)
    # This module imports torch, which a list of runs does not need.
    from brainseg.runs.repeat import update_hash

    folder.annotate(note, tags)
    update_hash(folder.path, "run.json")
    facts = folder.facts
    lines = [
        f"run:    {folder.path}",
        f"tags:   {', '.join(facts.get('tags', []))}",
        f"note:   {facts.get('note') or ''}",
    ]
    if facts["tracking"]:
        # MLflow takes seconds to import, and a list of runs does not need it.
        from brainseg.tracking.mirror import Mirror

        mirror = Mirror(folder.path)
        mirror.update(final=True)
        lines.append(mirror.describe())
    return "\n".join(line.rstrip() for line in lines)


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
