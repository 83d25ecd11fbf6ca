"""The run folder that a request means: by identity, by a numbered sibling, or by name."""

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
from brainseg.weights import packaged_file

CHECKPOINT_FORMS = "give a checkpoint, a run folder, runs:/ID, models:/NAME@ALIAS or lgg"
log = logging.getLogger("brainseg")


def claim_run_folder(config: TrainConfig, job: Job, name: str) -> RunFolder:
    """Return the folder that this request runs in, resumes, or finds finished.

    A sweep (and `resume=auto`) takes the folder of this identity. A single run, and `rerun`, create
    a numbered sibling at once, so that two requests which start at the same time get different
    folders. The settings `resume` and `rerun` are described in the configuration. Raises
    RequestError as `find_run_folder`.
    """
    if folder := find_run_folder(config, job, name):
        return folder
    root = Path(config.output or "runs")
    if _resume_mode(config, job) == "auto" and not config.rerun:
        return RunFolder(root / name)
    for number in itertools.count(1):
        # Creating the folder claims it: of two processes only one succeeds.
        with suppress(FileExistsError):
            path = root / (name if number == 1 else f"{name}-{number}")
            path.mkdir(parents=True)
            if number > 1:
                log.info(
                    "note: %s has the same settings, data, split and code; "
                    "with resume=auto it is resumed, or skipped if it is finished",
                    root / name,
                )
            return RunFolder(path)
    raise AssertionError("unreachable: the numbers do not end")


def find_run_folder(config: TrainConfig, job: Job, name: str) -> RunFolder | None:
    """Return the folder that this request resumes or finds finished, or None for a new run.

    Nothing is created. Raises RequestError if the request names a folder without a run, or with
    another run.
    """
    resume = _resume_mode(config, job)
    if resume not in ("auto", "never"):
        return RunFolder(resolve_run(resume))
    if config.output and not job.sweep:
        folder = RunFolder(config.output)
        check(
            resume == "auto" or not folder.exists,
            "output",
            config.output,
            "already contains a run",
            "set resume=auto to resume it, or choose another folder",
        )
        check(
            not folder.exists or folder.facts["name"] == name,
            "output",
            config.output,
            "already contains a run with other settings, data, split or code",
            "choose another folder",
        )
        return folder
    folders = sibling_folders(Path(config.output or "runs"), name)
    if config.rerun or resume == "never":
        # A launcher may start a lost job again. The job then resumes the run that it has begun
        # under the same start of the sweep.
        return next(
            (
                folder
                for folder in folders
                if job.start and folder.exists and folder.facts.get("start") == job.start
            ),
            None,
        )
    return next(
        (folder for folder in folders if folder.status["state"] == "finished"),
        folders[-1] if folders else None,
    )


def sibling_folders(root: Path, name: str) -> list[RunFolder]:
    """Return the existing folders NAME, NAME-2, NAME-3 ... below `root`, in order."""
    folders = [RunFolder(root / name)]
    while folders[-1].path.exists():
        folders.append(RunFolder(root / f"{name}-{len(folders) + 1}"))
    return folders[:-1]


def _resume_mode(config: TrainConfig, job: Job) -> str:
    """Return "auto", "never", or the run that `resume` names."""
    return config.resume or ("auto" if job.sweep else "never")


def resolve_run(run: str, setting: str = "resume") -> Path:
    """Return the folder of the run that `setting` names by its folder or its MLflow id.

    Raises RequestError if there is no such run.
    """
    path = Path(run)
    if (path / "run.json").is_file():
        return path
    # An MLflow id has 32 characters and no slash.
    if path.name == run and not path.exists() and len(run) == 32:
        from brainseg.tracking.lookup import folder_of_run

        return folder_of_run(run)
    raise RequestError(
        f"{setting}={run}: holds no run (no run.json); "
        f"{suggest_path(path) or 'give a folder under runs/ or an MLflow run id'}"
    )


def resolve_last(name: str, setting: str) -> str:
    """Return the newest run's folder below runs/ for the name `last`, and other names unchanged.

    A file or folder called `last` has priority. For a `setting` that reads weights, runs without a
    checkpoint are passed over. Raises RequestError if there is no run.
    """
    if name != "last" or Path(name).exists():
        return name
    folders = [RunFolder(path.parent) for path in Path("runs").glob("*/run.json")]
    if setting in ("checkpoint", "initial"):
        folders = [folder for folder in folders if folder.best.is_file()]
    check(bool(folders), setting, "last", "there is no such run below runs/", "name a run folder")
    return str(max(folders, key=lambda folder: folder.facts["created"]).path)


def resolve_checkpoint(name: str) -> Path:
    """Return the path of the checkpoint file that a name refers to."""
    if name.startswith(("runs:/", "models:/")):
        from brainseg.tracking.lookup import checkpoint_of

        return checkpoint_of(name)
    path = Path(name)
    if (path / "run.json").is_file():
        return path / "checkpoints" / "best.pt"
    # A file of the user comes before a network of the package.
    return path if path.is_file() else packaged_file(name) or path


def check_no_run(output: Path) -> None:
    """Raise RequestError if `output` is the folder of a run, whose scores would be overwritten."""
    check(
        not (output / "run.json").is_file(),
        "output",
        output,
        "already contains a run, and its scores would be overwritten",
        "choose another folder",
    )


def suggest_path(path: Path) -> str:
    """Return "did you mean ...?" with the run or file whose name is most similar to a missing path.

    The text is "" if no name is similar.
    """
    folder = path.parent if path.parent.is_dir() else Path("runs")
    names = (
        [
            entry.name
            for entry in folder.iterdir()
            if (entry / "run.json").is_file() or entry.is_file()
        ]
        if folder.is_dir()
        else []
    )
    matches = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean {folder / matches[0]}?" if matches else ""


def stored_overrides(run: str, setting: str) -> list[str]:
    """Return the overrides that a run was started with, to repeat or resume it.

    Typed overrides come after these, so that they take precedence.
    """
    stored = RunFolder(resolve_run(run, setting)).facts["overrides"]
    return without_settings(stored, NOT_REPEATED)
