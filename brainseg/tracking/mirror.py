"""Mirror of a run folder in MLflow while the run trains. It never disturbs the training."""

import logging
import shlex
import time
from pathlib import Path

from brainseg.core.errors import shorten_error
from brainseg.tracking.client import describe_run, import_mlflow
from brainseg.tracking.refusals import remedy_of
from brainseg.tracking.upload import RunUpload

log = logging.getLogger(__name__)

# The pause until the next attempt is this many times the duration of the last attempt, so that
# tracking costs 1 % of training. After a failure the pause is twice as long. If a server hangs, the
# first and the final attempt take a second each. From 100 s of training on, they cost less than 2 %
# as well.
PATIENCE = 100


def sync_command(folder: Path) -> str:
    """Return the command that sends a run folder to MLflow later."""
    return f"python -m brainseg.sync {shlex.quote(str(folder))}"


class Mirror:
    """Mirror of a run folder during training.

    A mirror updates MLflow only as often as that is cheap. It never raises an exception, whatever
    happens to the server.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.upload = RunUpload(folder)
        self.not_before = 0.0
        # True if any attempt has succeeded.
        self.reached = False
        # True if the last attempt failed.
        self.failing = False
        # The remedy, if MLflow refuses the run for good.
        self.refusal = ""

    def update(self, final: bool = False) -> None:
        """Upload what is new, unless the last attempt was too recent. `final` always tries.

        The pause after an attempt is `PATIENCE` times its duration, twice that after a failure.
        """
        started = time.monotonic()
        if started < self.not_before and not final:
            return
        # A run that MLflow accepted before and now refuses was deleted there. The next attempt
        # creates it again, so that this is no permanent refusal.
        is_first = not self.upload.run_id
        try:
            import_mlflow()
            started = time.monotonic()
            self.upload.update()
        except Exception as error:
            # The network, SQL, protobuf and plugins raise many types of exceptions. None of them
            # may stop the training.
            self._report_failure(error, final, remedy_of(error) if is_first else None)
        else:
            self.failing, self.refusal = False, ""
        # The import of MLflow does not count as cost. Neither does the first success, which may
        # have created the database.
        is_first_success = not (self.failing or self.reached)
        self.reached = self.reached or not self.failing
        cost = time.monotonic() - started
        pause = PATIENCE * cost * (2 if self.failing else 1)
        self.not_before = 0.0 if is_first_success else time.monotonic() + pause

    def describe(self) -> str:
        """Return the links of the run in MLflow, or the command that brings the run there."""
        if self.refusal:
            command = sync_command(self.folder)
            return f"MLflow:        refused the run; {self.refusal}, then run: {command}"
        if self.failing or not self.upload.run_id:
            command = sync_command(self.folder)
            return f"MLflow:        not up to date; run later: {command}"
        return describe_run(str(self.upload.uri), self.upload.experiment, self.upload.run_id)

    def _report_failure(self, error: Exception, final: bool, remedy: str | None) -> None:
        """Log a warning about a failure.

        If `remedy` is not None, waiting does not help. The warning then names the remedy and is
        logged once.
        """
        # The store may have accepted a part of the data, so a new object asks for its contents.
        self.upload = RunUpload(self.folder)
        reason = shorten_error(error, 300)
        sync = sync_command(self.folder)
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
            later = f"run `{sync}` later" if final else "training continues, MLflow will catch up"
            log.warning("tracking failed: %s; %s", reason, later)
        self.failing = True
