"""Upload of a run folder to MLflow.

The run folder is the only source. MLflow mirrors it, so that a second upload changes nothing.
"""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from brainseg.tracking.chart_layout import experiment_tags, sweep_tag
from brainseg.tracking.client import (
    artifact_repository,
    connect,
    experiment_id,
    run_link,
    short_timeouts,
    store_of,
)
from brainseg.tracking.contents import (
    FINAL,
    VALUE_LENGTH,
    colour_of,
    description_of,
    final_epoch,
    params_of,
    read_metrics,
    tags_of,
)
from brainseg.tracking.logged_model import log_dataset, log_model
from brainseg.tracking.runs import find_run, place_tags, runs_of_uid

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

# Timeout of a request while training waits for it.
TRAINING_SECONDS = 1
# Timeout of a request after the end of a run: this share of the run's duration, but at most
# FINAL_SECONDS. A slow server is worth so much waiting.
FINAL_SHARE, FINAL_SECONDS = 0.005, 10
# Timeout of an upload: a server that has just answered may take this long to store a checkpoint.
UPLOAD_SECONDS = 30
# Tag of a run: the name that brainseg gave to it.
NAME = "brainseg.name"
# Tags from which MLflow's pages take the description of a run and its colour.
DESCRIPTION, COLOUR = "mlflow.note.content", "mlflow.runColor"
# Prefixes of metrics that measure the machine.
MEASURED = ("speed/", "system/")
FIRST_FILES = ("run.json", "config.yaml", "split.json")
LAST_FILES = ("summary.json", "patients.csv", "slices.csv", "log.txt", "code.diff", "metrics.jsonl")
# The settings of a run that was trained with tracking=none.
DEFAULT_TRACKING: dict[str, Any] = {"uri": None, "artifacts": None, "experiment": "brainseg"}


def upload_run(
    folder: str | Path,
    uri: str | None = None,
    seconds: int = 10,
    experiment: str | None = None,
    sweep: str | None = None,
) -> str:
    """Bring MLflow up to date with the run folder and return the URL of the run's page.

    `uri` and `experiment` replace those named in the folder's `run.json`. `sweep` names an
    additional sweep that the run belongs to. Raises MlflowException or OSError if the store or the
    folder fails, ValueError or KeyError if a file of the folder is not valid, and RefusedError (a
    ValueError) if MLflow cannot accept the run.
    """
    upload = RunUpload(folder, uri, seconds, experiment, sweep)
    upload.update()
    return run_link(str(upload.uri), upload.experiment, upload.run_id)


class RunUpload:
    """Connection between one run folder and its MLflow run.

    It remembers the points that it has sent, so that an epoch costs one request. After an error,
    create a new object.
    """

    def __init__(
        self,
        folder: str | Path,
        uri: str | None = None,
        seconds: int = TRAINING_SECONDS,
        experiment: str | None = None,
        sweep: str | None = None,
    ) -> None:
        """Store the arguments. `uri`, `experiment` and `sweep` have the meaning of `upload_run`."""
        self.folder = Path(folder)
        self.uri = uri
        self.seconds = seconds
        self.requested_experiment, self.sweep = experiment, sweep
        self.run_id = ""
        self.experiment = ""
        self.sent: dict[tuple[str, int], float] = {}
        self.state = ""
        # Time of the last change of each picture that was sent.
        self.pictures: dict[str, int] = {}

    def update(self) -> None:
        """Send everything that MLflow lacks. Raises the same errors as `upload_run`."""
        for path in self.folder.rglob("*"):
            # A run folder from another person names the server, too. With a link in it, that server
            # could receive any file of this machine.
            if path.is_symlink():
                raise ValueError(
                    f"{path}: a link; only the files of the run folder itself are sent"
                )
        self.facts, self.status = (
            json.loads((self.folder / name).read_text()) for name in ("run.json", "status.json")
        )
        tracking = self.facts["tracking"] or DEFAULT_TRACKING
        self.uri = store_of(self.facts, self.folder, self.uri)
        seconds = self._request_timeout()
        # Without the lock, two processes on one folder (a training and a sync) would each create
        # the run. FileLock's Timeout is an OSError.
        with short_timeouts(seconds), FileLock(self.folder / ".tracking.lock", timeout=seconds):
            self.client = connect(self.uri)
            if not self.run_id:
                name = self.requested_experiment or tracking["experiment"]
                self.experiment = experiment_id(self.client, self.uri, name, tracking["artifacts"])
                self.run_id = self._begin()
            self._send_metrics()
            self._send_state()

    def _request_timeout(self) -> int:
        """Return the timeout of a request in seconds.

        The timeout is longer after the end of a run, because nothing waits for the process then. A
        killed run is an exception: whoever sent the signal waits for the process to exit.
        """
        if self.status["state"] in ("running", "killed"):
            return self.seconds
        duration = (self.status["ended"] - self.status["started"]) / 1000
        return max(self.seconds, min(round(FINAL_SHARE * duration), FINAL_SECONDS))

    def _begin(self) -> str:
        """Find the run by its uid or create it, and return its id.

        Sends the tags, the params, the dataset and the files that exist from the start.
        """
        from mlflow.entities import Param, RunTag

        uid = self.facts["uid"]
        existing_run = find_run(self.client, self.experiment, uid, self.folder)
        run = existing_run or self._create(uid)
        run_id = run.info.run_id
        self.files = artifact_repository(run.info.artifact_uri, str(self.uri))
        params, logged = params_of(self.folder, self.facts), run.data.params
        tags = tags_of(self.folder, self.facts)
        tags |= {sweep_tag(self.sweep): "true"} if self.sweep else {}
        # MLflow cannot change a param. A value that differs from the logged one becomes a tag.
        tags |= {
            f"extended.{key}": value
            for key, value in params.items()
            if logged.get(key, value) != value
        }
        # An extended run has a new name. A name that a user typed into MLflow's pages is kept.
        tags |= {NAME: self._name} | self._page_tags(run.data.tags)
        last_name = run.data.tags.get(NAME, run.info.run_name)
        if run.info.run_name != self._name and run.info.run_name == last_name:
            self.client.update_run(run_id, name=self._name)
        new = [Param(key, value) for key, value in params.items() if key not in logged]
        self.client.log_batch(
            run_id, params=new, tags=[RunTag(key, value) for key, value in tags.items()]
        )
        if self.facts["sweep"]:
            # The link to the sweep's chart works from the first job on.
            columns = self._varied_columns(params, tags)
            for key, value in experiment_tags(self.facts["sweep"], columns).items():
                self.client.set_experiment_tag(self.experiment, key, value)
        log_dataset(self.client, run, self.facts["data"])
        for name in FIRST_FILES:
            self.files.log_artifact(str(self.folder / name))
        # The tag describes an earlier attempt. If the run fails again, the tag is set again.
        if "error" in run.data.tags:
            self.client.delete_tag(run_id, "error")
        if existing_run:
            # The points in MLflow are read, so that each point is sent only once. A point of a
            # repeated epoch would differ in its time and its speed.
            metrics = read_metrics(self.folder, self.status["ended"])
            keys = {point.key for point in metrics.points}
            histories = {key: self.client.get_metric_history(run_id, key) for key in keys}
            self.sent = {
                (key, point.step): point.value
                for key, history in histories.items()
                for point in sorted(history, key=lambda point: point.timestamp)
            }
            self.state = run.info.status
        return run_id

    def _page_tags(self, logged: dict[str, str]) -> dict[str, str]:
        """Return the tags with which MLflow's pages describe and colour the run.

        A colour that a user chose on MLflow's pages is kept.
        """
        tags = {DESCRIPTION: description_of(self.facts, logged.get(DESCRIPTION))}
        colour = colour_of(self.facts)
        return tags if colour is None or COLOUR in logged else tags | {COLOUR: colour}

    def _varied_columns(self, params: dict[str, str], tags: dict[str, str]) -> list[str]:
        """Return MLflow's columns of the settings that the run's sweep varies."""
        columns = []
        for setting in self.facts.get("swept", []):
            names = (setting, f"{setting}.name")
            columns += [f"params.`{name}`" for name in names if name in params]
            columns += [f"tags.`{name}`" for name in names if name in tags]
        return columns

    @property
    def _name(self) -> str:
        return self.facts.get("label") or self.facts["name"]

    def _create(self, uid: str) -> "Run":
        """Create an MLflow run for the folder. A copy of a run's folder gets its own MLflow run."""
        tags = {"brainseg.uid": uid, NAME: self._name, **place_tags(self.folder)}
        if originals := runs_of_uid(self.client, self.experiment, uid):
            tags["copy_of"] = originals[-1].info.run_id
            place = originals[-1].data.tags.get("folder")
            log.warning("%s is a copy of %s and gets its own MLflow run", self.folder, place)
        return self.client.create_run(
            self.experiment, start_time=self.status["started"], tags=tags, run_name=self._name
        )

    def _send_metrics(self) -> None:
        metrics = read_metrics(self.folder, self.status["ended"])
        if any(self._is_contradicted(point) for point in metrics.epochs):
            self._set_aside()
            self.run_id = self._begin()
        new = [point for point in metrics.points if self._is_new(point)]
        if new:
            self.client.log_batch(self.run_id, metrics=new)
            self.sent |= {(point.key, point.step): point.value for point in new}

    def _is_new(self, point: "Metric") -> bool:
        """Return True if MLflow lacks the point, or has another value of a final score."""
        stored = self.sent.get((point.key, point.step))
        return stored is None or (point.key.startswith(FINAL) and not _is_same(stored, point.value))

    def _is_contradicted(self, point: "Metric") -> bool:
        """Return True if MLflow has another value at this step than the folder.

        Speeds and memory are ignored, because they differ whenever an epoch is repeated.
        """
        stored_value = self.sent.get((point.key, point.step), point.value)
        return not (_is_same(stored_value, point.value) or point.key.startswith(MEASURED))

    def _set_aside(self) -> None:
        """Detach the MLflow run from the folder, so that the folder's curve gets a new run.

        MLflow cannot change a point. The curves differ if a run was extended from its best epoch
        and took another course, or if other code started it again.
        """
        run = self.client.get_run(self.run_id)
        log.warning(
            "%s has another curve than its MLflow run %s, which keeps its points; "
            "the folder gets a new run",
            self.folder,
            self.run_id,
        )
        # The run no longer mirrors a folder, and no sweep's chart may show it.
        for tag in run.data.tags:
            if tag.startswith("sweep") or tag in place_tags(self.folder):
                self.client.delete_tag(self.run_id, tag)
        self.client.update_run(self.run_id, status="KILLED", name=f"{run.info.run_name} (replaced)")
        # This comes last, because the run cannot be found by its uid afterwards.
        self.client.set_tag(self.run_id, "brainseg.uid", f"{self.facts['uid']}.replaced")
        self.run_id, self.sent, self.state = "", {}, ""

    def _send_state(self) -> None:
        """Send the run's status, and after its end the remaining files.

        The model of a finished run is sent as well.
        """
        state = self.status["state"].upper()
        if state == "RUNNING":
            # The run was resumed or extended.
            if self.state not in ("", "RUNNING"):
                self.client.update_run(self.run_id, status="RUNNING")
            self.state = state
            self._send_pictures()
            return
        if error := self.status.get("error"):
            self.client.set_tag(self.run_id, "error", error[:VALUE_LENGTH])
        self.client.set_terminated(self.run_id, state, end_time=self.status["ended"])
        # After a kill, whoever sent the signal waits for this process.
        with short_timeouts(UPLOAD_SECONDS if state == "FINISHED" else self.seconds):
            for name in LAST_FILES:
                if (path := self.folder / name).exists():
                    self.files.log_artifact(str(path))
            if (pictures := self.folder / "pictures").is_dir():
                self.files.log_artifacts(str(pictures), "pictures")
            if (
                state == "FINISHED"
                and (checkpoint := self.folder / "checkpoints" / "best.pt").exists()
            ):
                metrics = read_metrics(self.folder, self.status["ended"])
                log_model(
                    self.client,
                    str(self.uri),
                    self.run_id,
                    checkpoint,
                    self.facts,
                    [point for point in metrics.points if point.key.startswith(FINAL)],
                    final_epoch(self.folder),
                )
        self.state = state

    def _send_pictures(self) -> None:
        """Send the pictures that were drawn since the last call, while the run trains."""
        # The pattern excludes files that are being written.
        for path in sorted((self.folder / "pictures").glob("[!.]*.png")):
            drawn = path.stat().st_mtime_ns
            if self.pictures.get(path.name) != drawn:
                self.files.log_artifact(str(path), "pictures")
                self.pictures[path.name] = drawn


def _is_same(first: float, second: float) -> bool:
    """Return True if two values of a metric are equal up to the precision of a database."""
    return math.isclose(first, second, rel_tol=1e-9) or (math.isnan(first) and math.isnan(second))
