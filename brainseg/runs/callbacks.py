"""The callbacks of a training run: progress bar, log lines, checkpoints, signals and MLflow."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from brainseg.config import StepConfig, TrackingConfig
from brainseg.core.signals import Interrupted, Signals
from brainseg.data.split import Split
from brainseg.reports import tables
from brainseg.runs.identity import training_budget
from brainseg.runs.live_pictures import LivePictures
from brainseg.runs.resume import save_checkpoints
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.system_metrics import SystemMonitor
from brainseg.tracking.mirror import Mirror
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.state import State

# Called before the first step and after each epoch. It may raise `Stopped` to end the run.
EpochCallback = Callable[[RunFolder, State], None]

# A run with fewer optimizer steps gets a warning.
FEW_STEPS = 100
# Seconds between two lines of progress where stdout is no terminal.
PROGRESS_SECONDS = 60
# The table at the end of a run has the first `MAX_ROWS` of these rows that were measured. The Dice
# of each class follows that of all classes. summary.json has all metrics.
ROWS = ("dice", "dice_median", "patients_missed", "precision", "recall", "hd95", "iou", "loss")
MAX_ROWS = 8
log = logging.getLogger("brainseg")


def no_callback(folder: RunFolder, state: State) -> None:
    """Do nothing: the default epoch callback."""


class RunCallbacks:
    """Progress bar, log lines, checkpoints and MLflow updates of one run.

    Call `describe_result` when the run folder is complete.
    """

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
        self.started_at, self.first_step = time.monotonic(), state.step
        self.printed_at = self.started_at
        self.monitor = SystemMonitor(task.device)
        self.pictures = LivePictures(
            folder.path / "pictures", task.validation, task.config.pictures.every_minutes
        )
        self.bar: tqdm | None = None
        self.is_mirrored = False

    def hooks(self) -> Callbacks:
        """Return the callbacks for `fit`."""
        return Callbacks(
            after_step=self._after_step,
            after_patient=self._after_patient,
            see_result=self.pictures.add,
            epoch_metrics=self.monitor.finish_epoch,
            after_epoch=self._after_epoch,
        )

    @contextmanager
    def show_progress(self) -> Iterator[Callbacks]:
        """Announce the run, and show its progress during the block.

        A terminal gets a progress bar, which vanishes at the end. Elsewhere a line is logged about
        once a minute.
        """
        self._announce()
        self.started_at = self.printed_at = time.monotonic()
        with tqdm(
            desc=self._describe_epoch(self.state),
            total=self.state.total_steps,
            initial=self.state.step,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} steps, {remaining} left",
            # The mean pace, validations included. The pace of the last steps would jump.
            smoothing=0,
            leave=False,
            disable=None,
            dynamic_ncols=True,
        ) as self.bar:
            yield self.hooks()
        self._conclude_plan()
        # A run that was resumed after its last step takes no step, yet its tests take minutes.
        self._report_start()

    def _announce(self) -> None:
        """Log what is about to be trained, with warnings about settings without effect."""
        task, state = self.task, self.state
        parameters = sum(parameter.numel() for parameter in state.model.parameters())
        log.info("run folder:   %s", self.folder.path)
        log.info(
            "device:       requested %s, using %s", task.device.requested, task.device.description
        )
        log.info(
            "data:         %d training slices of %s, %s, split %s %s",
            len(task.train),
            tables.format_count(len(self.split.train), "patient"),
            tables.format_count(len(self.split.validation), "validation patient"),
            self.split.name,
            self.split.sha256[:10],
        )
        if self.split.leaky:
            shared = len(set(self.split.train) & set(self.split.validation))
            log.warning(
                "LEAKY SPLIT:  %d of %d validation patients are trained on; "
                "no score of this run is measured on held-out patients",
                shared,
                len(self.split.validation),
            )
        log.info(
            "model:        %s, %s parameters; %d steps of %d slices, %d steps per epoch",
            task.config.model.name,
            f"{parameters:,}",
            state.total_steps,
            task.config.batch_size * task.config.accumulate,
            task.steps_per_epoch,
        )
        self._warn_of_few_steps()
        if state.total_steps < task.steps_per_epoch:
            log.warning(
                "note:         the run covers %.1f of an epoch: some slices are never used%s",
                state.total_steps / task.steps_per_epoch,
                ", and there is only one validation" if len(task.validation) else "",
            )
        schedule = task.config.scheduler
        if isinstance(schedule, StepConfig) and all(
            epoch * task.steps_per_epoch >= state.total_steps for epoch in schedule.epochs
        ):
            log.warning(
                "note:         scheduler=step lowers the learning rate at epochs %s, "
                "but the run ends before the first of them",
                schedule.epochs,
            )
        inference = task.config.inference
        if inference.min_volume and inference.components != "min_volume":
            log.warning(
                "note:         inference.min_volume=%d has no effect with inference.components=%s",
                inference.min_volume,
                inference.components,
            )
        if state.half_steps:
            log.info(
                "half size:    the first %d steps, into epoch %d, use images of half the size%s",
                state.half_steps,
                (state.half_steps - 1) // task.steps_per_epoch,
                "; val/dice is always measured at full size and means little until then"
                if len(task.validation)
                else "",
            )
        if state.step:
            log.info("resumed:      at epoch %d, step %d", state.epoch, state.step)
        self.epoch_callback(self.folder, state)

    def _warn_of_few_steps(self) -> None:
        if self.state.total_steps < FEW_STEPS:
            log.warning(
                "note:         the run has %d optimizer steps, and fewer than %d rarely suffice "
                "to train a network; raise %s",
                self.state.total_steps,
                FEW_STEPS,
                training_budget(self.task.config)[0],
            )

    def _conclude_plan(self) -> None:
        """Log the final number of steps of a time budget if the first plan had another number."""
        plans = self.state.plans
        # The number of steps of `steps_of` was logged at the start.
        if not plans or self.task.config.steps_of is not None:
            return
        if plans[-1].is_settled and plans[-1].total != plans[0].total:
            log.info(
                "steps:        %d in %g minutes; the first estimate was %d",
                plans[-1].total,
                self.task.config.max_minutes,
                plans[0].total,
            )
            # With a low first estimate the warning has been logged at the start.
            if plans[0].total >= FEW_STEPS:
                self._warn_of_few_steps()

    def _progress(self, state: State) -> None:
        """Advance the progress bar, or log a line if the last line is a minute old."""
        if self.bar is None:
            return
        if not self.bar.disable:
            self.bar.set_description_str(self._describe_epoch(state), refresh=False)
            # Under a time budget the number of steps changes with the pace.
            self.bar.total = state.total_steps
            self.bar.update(1)
            return
        now = time.monotonic()
        if now - self.printed_at < PROGRESS_SECONDS:
            return
        self.printed_at = now
        pace = (now - self.started_at) / max(1, state.step - self.first_step)
        log.info(
            "step %d of %d, %s, %s left",
            state.step,
            state.total_steps,
            self._describe_epoch(state),
            tables.format_duration(pace * (state.total_steps - state.step)),
        )

    def _describe_epoch(self, state: State) -> str:
        """Return epoch, loss of the last step that was read, and last and best val/dice."""
        # On a GPU the losses of the first epoch are not read before it ends.
        loss = f"{state.last_loss:.3f}" if math.isfinite(state.last_loss) else "-"
        text = f"epoch {state.epoch}, loss {loss}"
        scores = [
            row["metrics"]["val/dice"] for row in state.history if "val/dice" in row["metrics"]
        ]
        if scores and state.predicts_nothing:
            return f"{text}, no tumour predicted yet"
        return f"{text}, val/dice {scores[-1]:.3f} (best {state.best:.3f})" if scores else text

    def _after_step(self, state: State) -> None:
        self._progress(state)
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
        self._after_patient(state)

    def _report_start(self) -> None:
        """Create the MLflow run, with its status running, at the first call only."""
        if self.mirror is not None and not self.is_mirrored:
            self.is_mirrored = True
            self.mirror.update()
            # The first update imports MLflow, which would make the estimated time left too long.
            self.started_at, self.first_step = time.monotonic(), self.state.step

    def _after_patient(self, state: State) -> None:
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
def mirroring(folder: Path, config: TrackingConfig) -> Iterator[Mirror | None]:
    """Yield the MLflow mirror of a run, or None under tracking=none, and update it at the end.

    The last update happens however the block ends. Enter this block before `RunFolder.active`, so
    that the update sends the status that `active` has written last.
    """
    mirror = None if config.name == "none" else Mirror(folder)
    try:
        yield mirror
    finally:
        if mirror is not None and mirror.begun:
            mirror.update(final=True)


def describe_result(
    folder: Path, metrics: dict[str, float], explanation: str, mirror: Mirror | None
) -> str:
    """Return the last lines that a run prints: its main scores, its folder and one link."""
    split = RunFolder(folder).facts["split"]
    leaky = ", leaky=true: scored patients were trained on" if split["leaky"] else ""
    is_validated = split["validation"] > 0
    scores = tables.metrics_table(
        _main_scores(metrics),
        f"Scores of the {'best' if is_validated else 'last'} epoch, over whole patients{leaky}",
    )
    lines = [scores, explanation, "", f"run folder:    {folder}"]
    lines += (
        [mirror.describe()]
        if mirror is not None
        else [f"MLflow:        off; to record the run later: python -m brainseg.sync {folder}"]
    )
    return "\n".join(lines)


def _main_scores(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the table at the end of a run, of at most `MAX_ROWS` names."""
    names = list(dict.fromkeys(name.split("/", 1)[1] for name in metrics))
    # The Dice of a class is called dice/CLASS.
    of_classes = [name for name in names if name.startswith("dice/")]
    rows = [name for name in (ROWS[0], *of_classes, *ROWS[1:]) if name in names][:MAX_ROWS]
    return {
        name: value
        for row in rows
        for name, value in metrics.items()
        if name.split("/", 1)[1] == row
    }
