"""Which run folder a request means: the one of its identity, a numbered sibling, or one that it names."""

import difflib
import itertools
import logging
from contextlib import suppress
from pathlib import Path

from brainseg.config import TrainConfig
from brainseg.config.overrides import without_settings
from brainseg.core.errors import RequestError, check
from brainseg.runs.job import Job
from brainseg.runs.run_folder import NOT_REPEATED, RunFolder

log = logging.getLogger("brainseg")


def claim_run_folder(config: TrainConfig, job: Job, name: str) -> RunFolder:
    """The folder that this request runs in, resumes or finds finished; see `resume` and `rerun` in the configuration.

    A sweep (and `resume=auto`) takes the folder that has this identity; a single run, and `rerun`, make a numbered sibling,
    which is made at once: of two that start in the same instant each gets its own. Raises RequestError as `find_run_folder`.
    """
    if found := find_run_folder(config, job, name):
        return found
    root = Path(config.output or "runs")
    if _mode(config, job) == "auto" and not config.rerun:
        return RunFolder(root / name)
    for number in itertools.count(1):
        with suppress(FileExistsError):
            path = root / (name if number == 1 else f"{name}-{number}")
            path.mkdir(parents=True)
            if number > 1:
                log.info(
                    "note: %s is the same run; resume=auto would go on with it, or leave it where it is finished",
                    root / name,
                )
            return RunFolder(path)
    raise AssertionError("unreachable: the numbers do not end")


def find_run_folder(config: TrainConfig, job: Job, name: str) -> RunFolder | None:
    """The folder that this request goes on with or finds finished, creating nothing; None: it begins a new one.

    Raises RequestError where a folder is named that holds no run, or another one.
    """
    resume = _mode(config, job)
    if resume not in ("auto", "never"):
        return RunFolder(resolve_run(resume))
    if config.output and not job.sweep:
        folder = RunFolder(config.output)
        free = resume == "auto" or not folder.exists
        check(
            free,
            "output",
            config.output,
            "holds a run already",
            "resume=auto goes on with it; or give another folder",
        )
        same = not folder.exists or folder.facts["name"] == name
        check(
            same,
            "output",
            config.output,
            "holds a run with other settings, data, split or code",
            "give another folder",
        )
        return folder
    made = siblings(Path(config.output or "runs"), name)
    if (
        config.rerun or resume == "never"
    ):  # what this very start has begun is gone on with: its launcher starts a lost job again
        return next(
            (
                folder
                for folder in made
                if job.start and folder.exists and folder.facts.get("start") == job.start
            ),
            None,
        )
    return next(
        (folder for folder in made if folder.status["state"] == "finished"),
        made[-1] if made else None,
    )


def siblings(root: Path, name: str) -> list[RunFolder]:
    """The folders made under this name so far, in order."""
    made = [RunFolder(root / name)]
    while made[-1].path.exists():
        made.append(RunFolder(root / f"{name}-{len(made) + 1}"))
    return made[:-1]


def _mode(config: TrainConfig, job: Job) -> str:
    """auto, never, or the run that is named."""
    return config.resume or ("auto" if job.sweep else "never")


def resolve_run(run: str, setting: str = "resume") -> Path:
    """The folder of a run that `setting` names by its folder or its MLflow id. Raises RequestError if there is none."""
    path = Path(run)
    if (path / "run.json").is_file():
        return path
    if path.name == run and not path.exists() and len(run) == 32:
        from brainseg.tracking.lookup import folder_of

        return folder_of(run)
    raise RequestError(
        f"{setting}={run}: holds no run (no run.json); {nearest(path) or 'give a folder under runs/ or an MLflow run id'}"
    )


def check_no_run(output: Path) -> None:
    """Refuse to write scores into the folder of a run. Raises RequestError."""
    taken = (output / "run.json").is_file()
    check(
        not taken,
        "output",
        output,
        "holds a run, whose own scores these would replace",
        "give another folder",
    )


def nearest(path: Path) -> str:
    """Which run or file a path that is not there may have meant, as "did you mean ...?"; "" if none is like it."""
    there = path.parent if path.parent.is_dir() else Path("runs")
    names = (
        [
            entry.name
            for entry in there.iterdir()
            if (entry / "run.json").is_file() or entry.is_file()
        ]
        if there.is_dir()
        else []
    )
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean {there / close[0]}?" if close else ""


def stored_overrides(run: str, setting: str) -> list[str]:
    """The overrides that a run was started with, to repeat or resume it; typed ones go behind them and win."""
    stored = RunFolder(resolve_run(run, setting)).facts["overrides"]
    return without_settings(stored, NOT_REPEATED)
