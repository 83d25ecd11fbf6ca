"""The run folder: identity, lock, status. Finding the folder again (folders.py) is resume, skip and rerun.

run.json  config.yaml  split.json  code.diff      written once, before the first step
status.json                                       running, finished, failed, killed; host and pid
checkpoints/last.pt previous.pt best.pt           in this order: checkpoint, then metrics.jsonl from it, then MLflow
metrics.jsonl  log.txt                            while it runs
summary.json  patients.csv  slices.csv  predictions.h5  pictures/  at the end
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

from brainseg.config import TrainConfig, restore
from brainseg.config.overrides import without_settings
from brainseg.core.errors import InUseError, RequestError, check
from brainseg.core.files import remove_partial, rename, write_json, write_text
from brainseg.core.processes import is_alive
from brainseg.core.signals import Stopped
from brainseg.data.split import Split
from brainseg.runs.code_version import code_version
from brainseg.runs.identity import EXTENDED, drop_non_identity, non_default_settings

log = logging.getLogger("brainseg")

NOT_REPEATED = (
    "resume",
    "from",
    "output",
    "force",
    "rerun",
    "dry_run",
)  # of the overrides that a run was started with


class RunFolder:
    """One run on disk. `path` need not exist yet; nothing is created before `active`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.previous, self.best = (
            self.path / "checkpoints" / f"{name}.pt" for name in ("last", "previous", "best")
        )
        self.plan = self.path / "plan.json"

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says: uid, identity, name, code, data, split, device, overrides, sweep, job."""
        return json.loads((self.path / "run.json").read_text())

    @property
    def status(self) -> dict[str, Any]:
        """What `status.json` says; `{"state": "new"}` before the start."""
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.is_file() else {"state": "new"}

    @property
    def config(self) -> TrainConfig:
        """What `config.yaml` says, with what the run was extended by."""
        return restore(
            cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml")))
        )

    @property
    def state(self) -> str:
        """new, running, finished, failed, killed, or interrupted: `running`, but its process on this host is gone."""
        status = self.status
        gone = (
            status["state"] == "running"
            and status["host"] == socket.gethostname()
            and not is_alive(status["pid"])
        )
        return "interrupted" if gone else status["state"]

    @property
    def threads(self) -> int | None:
        """CPU threads that the run was made with, on which its bits depend; None before the start."""
        return self.facts["device"].get("threads") if self.exists else None

    def check_settings(self, config: TrainConfig) -> None:
        """Refuse to go on with a run under other settings. Raises RequestError listing what differs; longer is no difference."""
        before, now = (
            drop_non_identity(non_default_settings(one), EXTENDED) for one in (self.config, config)
        )
        keys = sorted(key for key in before | now if before.get(key) != now.get(key))
        changed = "; ".join(
            f"{key} was {before.get(key, 'the default')}, is {now.get(key, 'the default')}"
            for key in keys
        )
        check(
            not keys,
            "resume",
            self.path,
            changed,
            "a resumed run keeps its settings; start a new one for others",
        )

    def check_data(self, fingerprint: str, split: Split) -> None:
        """Refuse to go on with a run on other data or patients (RequestError); other code is a warning."""
        facts = self.facts
        check(
            facts["data"]["fingerprint"] == fingerprint,
            "resume",
            self.path,
            "the data are not those it was trained on",
            "give data.path=FILE of those, or start a new run",
        )
        check(
            facts["split"]["sha256"] == split.sha256,
            "resume",
            self.path,
            "the split is not the one it was trained under",
        )
        if facts["code"]["sha256"] != code_version().sha256:
            log.warning(
                "%s was made by another version of the code: the numbers may differ", self.path
            )

    @contextmanager
    def active(
        self, facts: dict[str, Any], config: TrainConfig, split: Split
    ) -> Iterator["RunFolder"]:
        """Hold the folder for the run: lock, status, log. Whatever ends the block ends up in status.json and log.txt.

        Raises InUseError if another process holds it, naming host, pid and since when; the lock dies with its process.
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
                f"output={self.path}: in use by pid {holder.get('pid')} on {holder.get('host')} since {since}; wait for it, "
                "or take another folder"
            ) from error
        try:  # again, now that nobody else can be writing it
            if self.exists:
                self.check_settings(config)
                self.check_data(facts["data"]["fingerprint"], split)
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
                    "found interrupted: process %d on %s is gone",
                    self.status["pid"],
                    self.status["host"],
                )
            if not self.exists:
                self._describe(facts, config, split)
            self._set_status("running", started)
            if any(getattr(config, name) != getattr(self.config, name) for name in EXTENDED):
                self._extend(
                    facts, config
                )  # now: a kill must not leave a longer run that says it is finished
            yield self
            self._set_status("finished", started)
        except Stopped as stop:
            log.warning("%s", stop)
            self._end("killed", started, str(stop))
            raise
        except Exception as error:
            error.add_note(f"its log: {self.path / 'log.txt'}")
            log.error("%s", traceback.format_exc())
            self._end("failed", started, f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        finally:
            log.removeHandler(handler)
            handler.close()
            lock.release()

    def _holder(self) -> dict[str, Any]:
        """Who has the lock: the winner writes its status a moment after it took it."""
        for _ in range(20):
            if self.state == "running":
                break
            time.sleep(0.1)
        return self.status

    def _describe(self, facts: dict[str, Any], config: TrainConfig, split: Split) -> None:
        code = code_version()
        self._write_config(config)
        write_json(self.path / "split.json", split.as_dict())
        write_text(self.path / "code.diff", code.diff)
        described = {
            "commit": code.commit,
            "dirty": code.dirty,
            "sha256": code.sha256,
            "version": code.version,
        }
        begun = {
            "uid": uuid.uuid4().hex,
            "created": round(time.time() * 1000),
            "path": str(self.path.resolve()),
        }
        write_json(self.path / "run.json", {**begun, "code": described, **facts})

    def _extend(self, facts: dict[str, Any], config: TrainConfig) -> None:
        """A run that is given more is from now on the longer one: a later resume must not ask for less."""
        self._write_config(config)
        now = {
            "overrides": without_settings(facts["overrides"], NOT_REPEATED),
            "label": facts.get("label", ""),
        }
        write_json(self.path / "run.json", {**self.facts, **now})

    def _write_config(self, config: TrainConfig) -> None:
        write_text(
            self.path / "config.yaml",
            OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))),
        )

    def _end(self, state: str, started: int, error: str) -> None:
        """Write how the run ended; on a full disk even that may fail, and must not hide what the run died of."""
        try:
            self._set_status(state, started, error)
        except OSError as failure:
            log.error("its status could not be written: %s", failure)

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
        """Make last.pt previous.pt, before a new last.pt is written."""
        if self.last.is_file():
            rename(self.last, self.previous)

    def write_down_kill(self, reason: str) -> bool:
        """If the run's process is gone without a word, say so in its status; returns whether that was so."""
        lock = FileLock(self.path / ".lock")
        with suppress(Timeout), lock.acquire(timeout=0):
            if self.state == "interrupted":
                self._set_status("killed", self.status["started"], reason)
                return True
        return False

    def forget(self) -> None:
        """Remove what the run has learnt, to begin anew in its folder and its record; call it while active."""
        for path in (self.last, self.previous, self.best, self.path / "metrics.jsonl", self.plan):
            path.unlink(missing_ok=True)

    def tidy(self, keep: str) -> None:
        """Leave a finished run its best.pt alone, unless `keep` is all."""
        for path in (self.last, self.previous) if keep == "best" else ():
            path.unlink(missing_ok=True)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Rewrite metrics.jsonl from the history that the checkpoint holds, so that the two cannot disagree."""
        write_text(
            self.path / "metrics.jsonl",
            "".join(json.dumps(row, allow_nan=False) + "\n" for row in history),
        )
