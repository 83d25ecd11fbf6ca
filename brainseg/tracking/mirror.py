"""Brings MLflow up to date with a run folder. The folder is the truth, MLflow is its mirror: doing it twice changes nothing."""

import json
import logging
import math
import os
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from brainseg.tracking.chart_layout import sweep_tag
from brainseg.tracking.client import (
    connect,
    describe_run,
    experiment_id,
    files_at,
    import_mlflow,
    run_link,
    short_timeouts,
    store_of,
)
from brainseg.tracking.contents import VALUE_LENGTH, metrics_of, params_of, tags_of
from brainseg.tracking.logged_model import log_dataset, log_model
from brainseg.tracking.refusals import remedy_of
from brainseg.tracking.runs import place_tags, run_of, runs_with

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

TRAINING_SECONDS = 1  # how long a request may take while training waits for it
FINAL_SHARE, FINAL_SECONDS = (
    0.005,
    10,
)  # of the time of a run that has ended, and at most: a slow server is waited for so long
UPLOAD_SECONDS = 30  # a server that has just answered may take this long to store a checkpoint
# Times the cost of an attempt until the next: 1 % of training. After a failure twice that: from 100 s on, the first and the final
# attempt at a server that hangs, a second each, stay below 2 % too.
PATIENCE = 100
NAME = "brainseg.name"  # tag of a run: the name that it was given here
FIRST_FILES = ("run.json", "config.yaml", "split.json")
LAST_FILES = ("summary.json", "patients.csv", "slices.csv", "log.txt", "code.diff", "metrics.jsonl")


def replicate(
    folder: str | Path,
    uri: str | None = None,
    seconds: int = 10,
    experiment: str | None = None,
    sweep: str | None = None,
) -> str:
    """Bring MLflow up to date with the run folder and return the link of the run's page.

    `uri` and `experiment` replace those named in the folder's `run.json`; `sweep` is a further sweep that the run
    belongs to. Raises MlflowException or OSError when the store or the folder fails, ValueError or KeyError when a
    file of the folder is not what a run writes, RefusedError (a ValueError) when MLflow cannot take the run.
    """
    tracker = Tracker(folder, uri, seconds, experiment, sweep)
    tracker.update()
    return run_link(str(tracker.uri), tracker.experiment, tracker.run_id)


class Mirror:
    """What training holds: updates MLflow when that is cheap, and never raises, whatever becomes of the server."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tracker = Tracker(folder)
        self.not_before = 0.0
        self.reached = False  # an attempt has succeeded
        self.failing = False  # the last attempt did not
        self.refusal = ""  # why MLflow will not take the run, and what can be done about it

    @property
    def begun(self) -> bool:
        """Whether this process is or was at work on the folder: one that was refused it has nothing to send."""
        path = self.folder / "status.json"
        status = json.loads(path.read_text()) if path.is_file() else {}
        return (status.get("host"), status.get("pid")) == (socket.gethostname(), os.getpid())

    def update(self, final: bool = False) -> None:
        """Replicate the folder, unless an attempt not long ago took its time; `final` tries in any case."""
        started = time.monotonic()
        if started < self.not_before and not final:
            return
        # A run that MLflow knew and now refuses was deleted there, and the next attempt makes it anew.
        is_first = not self.tracker.run_id
        try:
            import_mlflow()
            started = time.monotonic()
            self.tracker.update()
        except Exception as error:  # whatever network, SQL, protobuf and plugins raise: a run must not die of its mirror
            self._failed(error, final, remedy_of(error) if is_first else None)
        else:
            self.failing, self.refusal = False, ""
        # Not held against the store: the import of MLflow, and the first success, which may have made the database.
        first = not (self.failing or self.reached)
        self.reached = self.reached or not self.failing
        cost = time.monotonic() - started
        self.not_before = (
            0.0 if first else time.monotonic() + PATIENCE * cost * (2 if self.failing else 1)
        )

    def describe(self) -> str:
        """Where the run is in MLflow, or how to bring it there."""
        if self.refusal:
            return f"MLflow:        refused; {self.refusal}; then: python -m brainseg.sync {shlex.quote(str(self.folder))}"
        if self.failing or not self.tracker.run_id:
            return f"MLflow:        not up to date; later: python -m brainseg.sync {self.folder}"
        return describe_run(str(self.tracker.uri), self.tracker.experiment, self.tracker.run_id)

    def _failed(self, error: Exception, final: bool, remedy: str | None) -> None:
        """Warn of a failure; of one that waiting does not cure once, with the remedy."""
        self.tracker = Tracker(
            self.folder
        )  # what the store holds is asked anew: it may have taken a part
        reason, sync = (
            " ".join(str(error).split())[:300],
            f"python -m brainseg.sync {shlex.quote(str(self.folder))}",
        )
        if remedy is not None:
            if remedy != self.refusal:
                log.warning(
                    "MLflow refuses the run, and waiting does not help: %s; %s, then run `%s`",
                    reason,
                    remedy,
                    sync,
                )
            self.refusal = remedy
        elif final or not self.failing:
            later = f"run `{sync}` later" if final else "training goes on, MLflow will catch up"
            log.warning("tracking failed: %s; %s", reason, later)
        self.failing = True


class Tracker:
    """One run folder and its MLflow run; remembers what it sent, so that an epoch costs one request. Start anew after an error."""

    def __init__(
        self,
        folder: str | Path,
        uri: str | None = None,
        seconds: int = TRAINING_SECONDS,
        experiment: str | None = None,
        sweep: str | None = None,
    ) -> None:
        """`uri`, `experiment` and `sweep` are those of `replicate`."""
        self.folder = Path(folder)
        self.uri = uri
        self.seconds = seconds
        self.named, self.sweep = experiment, sweep
        self.run_id = ""
        self.experiment = ""
        self.sent: dict[tuple[str, int], float] = {}
        self.state = ""

    def update(self) -> None:
        """Send what MLflow lacks; raises as `replicate`."""
        for path in self.folder.rglob("*"):
            if (
                path.is_symlink()
            ):  # a folder from elsewhere names the server too, and could so fetch any file of ours
                raise ValueError(
                    f"{path}: a link; only the files of the run folder itself are sent"
                )
        self.record, self.status = (
            json.loads((self.folder / name).read_text()) for name in ("run.json", "status.json")
        )
        where = self.record["tracking"] or {
            "uri": None,
            "artifacts": None,
            "experiment": "brainseg",
        }
        self.uri = store_of(self.record, self.folder, self.uri)
        seconds = self._patience()
        # Two processes on one folder (a training and a sync) would each create the run. FileLock's Timeout is an OSError.
        with short_timeouts(seconds), FileLock(self.folder / ".tracking.lock", timeout=seconds):
            self.client = connect(self.uri)
            if not self.run_id:
                self.experiment = experiment_id(
                    self.client, self.uri, self.named or where["experiment"], where["artifacts"]
                )
                self.run_id = self._begin()
            self._send_metrics()
            self._send_state()

    def _patience(self) -> int:
        """Seconds for a request: nothing waits for a run that has ended, but for a killed one its killer does."""
        if self.status["state"] in ("running", "killed"):
            return self.seconds
        lasted = (self.status["ended"] - self.status["started"]) / 1000
        return max(self.seconds, min(round(FINAL_SHARE * lasted), FINAL_SECONDS))

    def _begin(self) -> str:
        """Find the run by its uid or create it; send tags, params, data set and the files that are there from the start."""
        from mlflow.entities import Param, RunTag

        uid = self.record["uid"]
        found = run_of(self.client, self.experiment, uid, self.folder)
        run = found or self._create(uid)
        run_id = run.info.run_id
        self.files = files_at(run.info.artifact_uri, str(self.uri))
        params, tags, logged = (
            params_of(self.folder),
            tags_of(self.folder, self.record),
            run.data.params,
        )
        tags |= {sweep_tag(self.sweep): "true"} if self.sweep else {}
        # A param keeps the value that it was logged with. Another value of today becomes a tag.
        tags |= {
            f"extended.{key}": value
            for key, value in params.items()
            if logged.get(key, value) != value
        }
        # An extended run has a new name. A name that was given in MLflow's pages stays.
        tags |= {NAME: self._name}
        if run.info.run_name != self._name and run.info.run_name == run.data.tags.get(
            NAME, run.info.run_name
        ):
            self.client.update_run(run_id, name=self._name)
        new = [Param(key, value) for key, value in params.items() if key not in logged]
        self.client.log_batch(
            run_id, params=new, tags=[RunTag(key, value) for key, value in tags.items()]
        )
        log_dataset(self.client, run, self.record["data"])
        for name in FIRST_FILES:
            self.files.log_artifact(str(self.folder / name))
        if (
            "error" in run.data.tags
        ):  # what stopped it before; if it ends so again, that is said again
            self.client.delete_tag(run_id, "error")
        if found:  # each point once, also when an epoch was lost and run again: its time and its speed would differ
            keys = {point.key for point in self._points()}
            histories = {key: self.client.get_metric_history(run_id, key) for key in keys}
            self.sent = {
                (key, point.step): point.value
                for key, history in histories.items()
                for point in history
            }
            self.state = run.info.status
        return run_id

    @property
    def _name(self) -> str:
        return self.record.get("label") or self.record["name"]

    def _create(self, uid: str) -> "Run":
        """Create the MLflow run, which is the folder's own also where the folder is a copy of another run's."""
        tags = {"brainseg.uid": uid, NAME: self._name, **place_tags(self.folder)}
        if originals := runs_with(self.client, self.experiment, uid):
            tags["copy_of"] = originals[-1].info.run_id
            place = originals[-1].data.tags.get("folder")
            log.warning("%s is a copy of %s: it has an MLflow run of its own", self.folder, place)
        return self.client.create_run(
            self.experiment, start_time=self.status["started"], tags=tags, run_name=self._name
        )

    def _points(self) -> list["Metric"]:
        return metrics_of(self.folder, ended=self.status["state"] != "running")

    def _send_metrics(self) -> None:
        if any(self._is_contradicted(point) for point in metrics_of(self.folder, ended=False)):
            self._set_aside()
            self.run_id = self._begin()
        new = [point for point in self._points() if (point.key, point.step) not in self.sent]
        if new:
            self.client.log_batch(self.run_id, metrics=new)
            self.sent |= {(point.key, point.step): point.value for point in new}

    def _is_contradicted(self, point: "Metric") -> bool:
        """Return True if MLflow has another value at this step than the folder; speeds differ whenever an epoch is repeated."""
        held = self.sent.get((point.key, point.step), point.value)
        is_same = math.isclose(held, point.value, rel_tol=1e-9) or (
            math.isnan(held) and math.isnan(point.value)
        )
        return not (is_same or point.key.startswith("speed/"))

    def _set_aside(self) -> None:
        """Leave the MLflow run to the curve that it has, because MLflow changes no point; the folder's curve gets another run.

        That is a run which was extended from its best epoch on another curve, or begun anew by other code.
        """
        run = self.client.get_run(self.run_id)
        log.warning(
            "%s has another curve than its MLflow run %s, which keeps its points; the folder gets a new run",
            self.folder,
            self.run_id,
        )
        # It mirrors no folder any more, and no sweep's chart may show it.
        for tag in run.data.tags:
            if tag.startswith("sweep") or tag in place_tags(self.folder):
                self.client.delete_tag(self.run_id, tag)
        self.client.update_run(self.run_id, status="KILLED", name=f"{run.info.run_name} (replaced)")
        # Last, as from here on the run is not found by the uid any more.
        self.client.set_tag(self.run_id, "brainseg.uid", f"{self.record['uid']}.replaced")
        self.run_id, self.sent, self.state = "", {}, ""

    def _send_state(self) -> None:
        """The run's status; at its end also the files that are there by then, and of a finished run the model."""
        state = self.status["state"].upper()
        if state == "RUNNING":
            if self.state not in ("", "RUNNING"):  # resumed or extended
                self.client.update_run(self.run_id, status="RUNNING")
            self.state = state
            return
        if error := self.status.get("error"):
            self.client.set_tag(self.run_id, "error", error[:VALUE_LENGTH])
        self.client.set_terminated(self.run_id, state, end_time=self.status["ended"])
        # Killed: the one who sent the signal waits for us.
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
                final = [
                    point for point in self._points() if point.key.startswith(("best/", "test/"))
                ]
                log_model(self.client, str(self.uri), self.run_id, checkpoint, self.record, final)
        self.state = state
