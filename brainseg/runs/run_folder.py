"""The folder of one run: its files, its lock and its status.

run.json  config.yaml  split.json  code.diff      written once, before the first step
status.json                                       running, finished, failed, killed; host and pid
checkpoints/last.pt previous.pt best.pt    written in the order checkpoint, metrics.jsonl, MLflow
metrics.jsonl  log.txt                            written while the run is active
summary.json  patients.csv  slices.csv  predictions.h5  pictures/    written at the end
"""

import dataclasses
import json
import logging
import os
import socket
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from brainseg.config import EXTENDED, TrainConfig, restore_config
from brainseg.config.overrides import without_settings
from brainseg.core.errors import InUseError, RequestError, check
from brainseg.core.files import remove_partial, rename, write_json, write_text
from brainseg.core.processes import is_alive
from brainseg.core.signals import Stopped
from brainseg.data.split import Split
from brainseg.runs.code_version import code_version
from brainseg.runs.identity import drop_non_identity, non_default_settings

log = logging.getLogger("brainseg")

# Overrides that belong to one start of a run: a resume and `from=RUN` do not repeat them.
NOT_REPEATED = ("resume", "from", "output", "force", "rerun", "wait", "dry_run", "note", "tags")
# Settings that may change after the start, so that run.json alone contains them.
ANNOTATIONS = ("note", "tags")


class RunFolder:
    """The folder of one run. `path` need not exist yet: `active` creates the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.previous, self.best = (
            self.path / "checkpoints" / f"{name}.pt" for name in ("last", "previous", "best")
        )
        self.plan = self.path / "plan.json"
        # True once this object has been `active`.
        self.was_active = False

    @property
    def exists(self) -> bool:
        """Return True if the folder contains run.json, that is, if a run was started in it."""
        return (self.path / "run.json").is_file()

    @property
    def facts(self) -> dict[str, Any]:
        """Return the content of `run.json`.

        The keys are uid, identity, name, code, data, split, device, overrides, sweep, job, note,
        tags. Runs of earlier versions lack the last two.
        """
        return json.loads((self.path / "run.json").read_text())

    @property
    def status(self) -> dict[str, Any]:
        """Return the content of `status.json`, or `{"state": "new"}` before the start."""
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.is_file() else {"state": "new"}

    @property
    def config(self) -> TrainConfig:
        """Return the settings in `config.yaml`, extensions included."""
        return restore_config(
            cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml")))
        )

    @property
    def state(self) -> str:
        """Return new, running, finished, failed, killed or interrupted.

        An interrupted run has the status `running`, but its process on this host no longer exists.
        """
        status = self.status
        # The process of another host cannot be checked from here.
        is_gone = (
            status["state"] == "running"
            and status["host"] == socket.gethostname()
            and not is_alive(status["pid"])
        )
        return "interrupted" if is_gone else status["state"]

    @property
    def threads(self) -> int | None:
        """Return the number of CPU threads of the run, or None before the start.

        The bits of the results depend on this number.
        """
        return self.facts["device"].get("threads") if self.exists else None

    def check_settings(self, config: TrainConfig) -> None:
        """Raise RequestError, which lists the differences, if a resume changes settings.

        Epochs, steps, minutes and patience may differ. The initial weights are compared by
        `check_initial`, because their file may have been moved.
        """
        stored, requested = (
            drop_non_identity(non_default_settings(settings), (*EXTENDED, "initial"))
            for settings in (self.config, config)
        )
        keys = sorted(key for key in stored | requested if stored.get(key) != requested.get(key))
        changes = "; ".join(
            f"{key} was {stored.get(key, 'the default')}, is {requested.get(key, 'the default')}"
            for key in keys
        )
        check(
            not keys,
            "resume",
            self.path,
            changes,
            "a resumed run keeps its settings; start a new run for other settings",
        )

    def check_initial(self, sha256: str) -> None:
        """Raise RequestError if a resume changes the initial weights, whose hash is `sha256`."""
        check(
            self.facts.get("initial", {}).get("sha256", "") == sha256,
            "resume",
            self.path,
            "the initial weights differ from those that the run began with",
            "set initial to the same weights, or start a new run",
        )

    def check_data(self, fingerprint: str, split: Split) -> None:
        """Raise RequestError if a resume changes the data or the split.

        Other code only causes a warning.
        """
        facts = self.facts
        check(
            facts["data"]["fingerprint"] == fingerprint,
            "resume",
            self.path,
            "the data differ from those that the run was trained on",
            "set data.path to the file of the run's data, or start a new run",
        )
        check(
            facts["split"]["sha256"] == split.sha256,
            "resume",
            self.path,
            "the split differs from the one that the run was trained with",
            "set split.* as in the run, or start a new run",
        )
        if facts["code"]["sha256"] != code_version().sha256:
            log.warning(
                "%s was made by another version of the code: the results may differ", self.path
            )

    @contextmanager
    def active(
        self, facts: dict[str, Any], config: TrainConfig, split: Split
    ) -> Iterator["RunFolder"]:
        """Lock the folder for the block, and write its status and log.

        An error that ends the block is written to status.json and log.txt. The lock is released
        when its process ends, however that happens. Raises InUseError, which names host, pid and
        start time, if another process has the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            holder = self._holder()
            since = time.strftime(
                "%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started", 0) / 1000)
            )
            raise InUseError(
                f"output={self.path}: in use by pid {holder.get('pid')} on {holder.get('host')} "
                f"since {since}; wait until that process ends, or choose another folder"
            ) from error
        # The caller has checked the run before. Another process may have written it since then.
        try:
            if self.exists:
                self.check_settings(config)
                self.check_data(facts["data"]["fingerprint"], split)
                self.check_initial(facts.get("initial", {}).get("sha256", ""))
        except RequestError:
            lock.release()
            raise
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        started = round(time.time() * 1000)
        try:
            remove_partial(self.path)
            if self.state == "interrupted":
                log.warning(
                    "found interrupted: process %d on %s no longer exists",
                    self.status["pid"],
                    self.status["host"],
                )
            if not self.exists:
                self._write_metadata(facts, config, split)
            # The status changes before the settings: a kill in between must not leave a longer run
            # with the status finished.
            self._set_status("running", started)
            self.was_active = True
            if any(getattr(config, name) != getattr(self.config, name) for name in EXTENDED):
                self._write_extension(facts, config)
            self.annotate(config.note, config.tags or None)
            yield self
            self._set_status("finished", started)
        except Stopped as stop:
            log.warning("%s", stop)
            self._end("killed", started, str(stop))
            raise
        except Exception as error:
            error.add_note(f"log of the run: {self.path / 'log.txt'}")
            log.error("%s", traceback.format_exc())
            self._end("failed", started, f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        finally:
            log.removeHandler(handler)
            handler.close()
            lock.release()

    def _holder(self) -> dict[str, Any]:
        """Return the status of the run that has the lock."""
        # The other process writes its status a moment after it has taken the lock.
        for _ in range(20):
            if self.state == "running":
                break
            time.sleep(0.1)
        return self.status

    def _write_metadata(self, facts: dict[str, Any], config: TrainConfig, split: Split) -> None:
        """Write the files that do not change, and run.json last: it marks the folder as a run."""
        code = code_version()
        self._write_config(config)
        write_json(self.path / "split.json", split.as_dict())
        write_text(self.path / "code.diff", code.diff)
        code_facts = {
            "commit": code.commit,
            "dirty": code.dirty,
            "sha256": code.sha256,
            "version": code.version,
        }
        start_facts = {
            "uid": uuid.uuid4().hex,
            "created": round(time.time() * 1000),
            "path": str(self.path.resolve()),
        }
        write_json(self.path / "run.json", {**start_facts, "code": code_facts, **facts})

    def _write_extension(self, facts: dict[str, Any], config: TrainConfig) -> None:
        """Store the settings of a longer run, with which a later resume is compared."""
        self._write_config(config)
        extension = {
            "overrides": without_settings(facts["overrides"], NOT_REPEATED),
            "label": facts.get("label", ""),
        }
        write_json(self.path / "run.json", {**self.facts, **extension})

    def annotate(self, note: str | None = None, tags: list[str] | None = None) -> None:
        """Replace the note and the tags in run.json. None keeps what is there."""
        changes = {"note": note, "tags": tags}
        changes = {name: value for name, value in changes.items() if value is not None}
        facts = self.facts
        if facts != facts | changes:
            write_json(self.path / "run.json", facts | changes)

    def _write_config(self, config: TrainConfig) -> None:
        settings = dataclasses.asdict(config)
        settings = {name: value for name, value in settings.items() if name not in ANNOTATIONS}
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))

    def _end(self, state: str, started: int, error: str) -> None:
        """Write how the run ended."""
        try:
            self._set_status(state, started, error)
        except OSError as failure:
            # On a full disk this write fails, too. It must not hide the error that ended the run.
            log.warning("the status of the run could not be written: %s", failure)

    def _set_status(self, state: str, started: int, error: str | None = None) -> None:
        ended = None if state == "running" else round(time.time() * 1000)
        status = {
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": started,
            "ended": ended,
            "error": error,
        }
        write_json(self.path / "status.json", status)

    def rotate(self) -> None:
        """Rename last.pt to previous.pt, before a new last.pt is written."""
        if self.last.is_file():
            rename(self.last, self.previous)

    def mark_killed(self, reason: str) -> bool:
        """Write the status killed if the run is interrupted, and return True if so."""
        # The lock shows that no other process has resumed the run in the meantime.
        lock = FileLock(self.path / ".lock")
        with suppress(Timeout), lock.acquire(timeout=0):
            if self.state == "interrupted":
                self._set_status("killed", self.status["started"], reason)
                return True
        return False

    def reset(self) -> None:
        """Remove checkpoints, history and plan, so that the run starts again in the same folder.

        Call this while the folder is active.
        """
        for path in (self.last, self.previous, self.best, self.path / "metrics.jsonl", self.plan):
            path.unlink(missing_ok=True)

    def remove_old_checkpoints(self, keep: str) -> None:
        """Remove last.pt and previous.pt of a finished run if `keep` is "best"."""
        for path in (self.last, self.previous) if keep == "best" else ():
            path.unlink(missing_ok=True)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Rewrite metrics.jsonl from the checkpoint's history, so that the two agree."""
        write_text(
            self.path / "metrics.jsonl",
            "".join(json.dumps(row, allow_nan=False) + "\n" for row in history),
        )
