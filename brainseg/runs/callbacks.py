"""The callbacks of a training run: progress, checkpoints, pictures, signals and MLflow."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from brainseg.config import TrackingConfig
from brainseg.core.signals import Interrupted, Signals
from brainseg.data.split import Split
from brainseg.runs.announcement import announce, announce_steps
from brainseg.runs.live_pictures import LivePictures
from brainseg.runs.progress_bar import ProgressBar, show_progress
from brainseg.runs.resume import save_checkpoints
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.system_metrics import SystemMonitor
from brainseg.tracking.mirror import Mirror
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.state import State

# Called before the first step and after each epoch. It may raise `Stopped` to end the run.
EpochCallback = Callable[[RunFolder, State], None]

log = logging.getLogger("brainseg")


def no_callback(folder: RunFolder, state: State) -> None:
    """Do nothing: the default epoch callback."""


class RunCallbacks:
    """Progress bar, log lines, checkpoints, pictures and MLflow updates of one run."""

    def __init__(
        self,
        folder: RunFolder,
        task: TrainingContext,
        state: State,
        split: Split,
        signals: Signals,
        mirror: Mirror | None,
        epoch_callback: EpochCallback = no_callback,
    ) -> None:
        self.folder, self.task, self.state, self.split = folder, task, state, split
        self.signals, self.mirror = signals, mirror
        self.epoch_callback = epoch_callback
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.monitor = SystemMonitor(task.device)
        self.pictures = LivePictures(
            folder.path / "pictures", task.validation, task.config.pictures.every_minutes
        )
        self.progress: ProgressBar | None = None
        self.is_mirrored = False

    def hooks(self) -> Callbacks:
        """Return the callbacks for `fit`."""
        return Callbacks(
            after_step=self._after_step,
            after_patient=self._stop_on_signal,
            see_result=self.pictures.add,
            epoch_metrics=self.monitor.finish_epoch,
            after_epoch=self._after_epoch,
        )

    @contextmanager
    def active(self) -> Iterator[Callbacks]:
        """Announce the run, and yield the callbacks that show its progress during the block."""
        announce(self.state, self.task, self.folder.path, self.split)
        self.epoch_callback(self.folder, self.state)
        with show_progress(self.state) as self.progress:
            yield self.hooks()
        announce_steps(self.state, self.task)
        # A run that was resumed after its last step takes no step. Scoring its patients takes
        # minutes, during which MLflow should list it.
        self._report_start()

    def _after_step(self, state: State) -> None:
        if self.progress is not None:
            self.progress.advance(state)
        self.monitor.sample()
        # MLflow takes longer to import than all else up to the first step, so the step comes first.
        self._report_start()
        checkpoints = self.task.config.checkpoint
        is_due = (
            checkpoints.every_steps is not None
            and state.step - self.saved_step >= checkpoints.every_steps
        )
        is_due = is_due or (
            checkpoints.every_minutes is not None
            and time.monotonic() - self.saved_at >= checkpoints.every_minutes * 60
        )
        if is_due:
            self._save(state)
        self._stop_on_signal(state)

    def _report_start(self) -> None:
        """Create the MLflow run, with its status running, at the first call only."""
        if self.mirror is not None and not self.is_mirrored:
            self.is_mirrored = True
            self.mirror.update()
            # The first update imports MLflow, which would make the estimated time left too long.
            if self.progress is not None:
                self.progress.restart_pace(self.state)

    def _stop_on_signal(self, state: State) -> None:
        """Save the state and raise `Interrupted` if a signal has arrived.

        The loop calls this between two steps and between two validated patients, the only moments
        at which a signal may end the run.
        """
        try:
            self.signals.poll()
        except Interrupted:
            self._save(state)
            raise

    def _after_epoch(self, state: State, improved: bool) -> None:
        # Checkpoint and metrics.jsonl are written before MLflow is updated (see `run_folder`).
        self._save(state, improved)
        metrics = state.history[-1]["metrics"]
        validation_text = "".join(
            f"{name} {metrics[name]:.4f}  " for name in ("val/loss", "val/dice") if name in metrics
        )
        log.debug(
            "epoch %3d  train/loss %.4f  %s%s%.1f s",
            state.epoch - 1,
            metrics["train/loss"],
            validation_text,
            ("best   " if improved else " " * 7) if validation_text else "",
            metrics["speed/epoch_seconds"],
        )
        if "val/dice" in metrics and state.predicts_nothing:
            # A patient without tumour has a Dice of 1 as long as nothing is predicted.
            explanation = (
                "; val/dice comes only from patients without tumour" if metrics["val/dice"] else ""
            )
            log.debug("           the network predicts no tumour yet%s", explanation)
        elif metrics.get("val/dice") == 0:
            log.debug("           no pixel that the network predicts lies in a tumour yet")
        self.pictures.draw(state)
        if self.mirror is not None:
            self.mirror.update()
        self.epoch_callback(self.folder, state)

    def _save(self, state: State, improved: bool = False) -> None:
        save_checkpoints(self.folder, state, self.task, self.split, improved)
        self.saved_at, self.saved_step = time.monotonic(), state.step


@contextmanager
def mirroring(folder: RunFolder, config: TrackingConfig) -> Iterator[Mirror | None]:
    """Yield the MLflow mirror of a run, or None under tracking=none, and update it at the end.

    The last update happens however the block ends. Enter this block before `RunFolder.active`, so
    that the update sends the status that `active` has written last.
    """
    mirror = None if config.name == "none" else Mirror(folder.path)
    try:
        yield mirror
    finally:
        # A process that was refused the folder has nothing to send.
        if mirror is not None and folder.was_active:
            mirror.update(final=True)
