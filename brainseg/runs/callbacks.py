"""What happens around the training loop: progress, checkpoints, signals, MLflow. The hooks that train.py gives the engine."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from brainseg.config import StepConfig, TrackingConfig
from brainseg.core.signals import Interrupted, Signals
from brainseg.data.split import Split
from brainseg.reports import tables
from brainseg.runs.identity import training_budget
from brainseg.runs.resume import save
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.mirror import Mirror
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.state import State

EpochCallback = Callable[
    [RunFolder, State], None
]  # called before the first step and after each epoch; may raise `Stopped`

FEW_STEPS = 100
log = logging.getLogger("brainseg")


def no_callback(folder: RunFolder, state: State) -> None:
    """The follower of a run that nobody follows."""


class RunCallbacks:
    """Follows one run. Use `hooks` while training; `announce` before, `describe_result` after the folder is complete."""

    def __init__(
        self,
        folder: RunFolder,
        task: TrainingContext,
        state: State,
        split: Split,
        signals: Signals,
        mirror: Mirror | None,
        follow: EpochCallback = no_callback,
    ) -> None:
        self.folder, self.task, self.state, self.split, self.signals, self.mirror = (
            folder,
            task,
            state,
            split,
            signals,
            mirror,
        )
        self.follow = follow
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.bar: tqdm | None = None
        self.mirrored = False

    def hooks(self) -> Callbacks:
        return Callbacks(
            after_step=self._after_step,
            after_patient=self._after_patient,
            after_epoch=self._after_epoch,
        )

    @contextmanager
    def showing(self) -> Iterator[Callbacks]:
        """Announce the run and draw its progress bar (on a terminal only) for the block."""
        self._announce()
        total, done = self.state.total_steps, self.state.step
        with (
            logging_redirect_tqdm(),
            tqdm(
                total=total, initial=done, unit="step", disable=None, dynamic_ncols=True
            ) as self.bar,
        ):
            yield self.hooks()
        self._conclude_plan()
        self._tell_mlflow()  # resumed behind its last step, a run has only its tests to do, which take minutes

    def _announce(self) -> None:
        task, state = self.task, self.state
        parameters = sum(parameter.numel() for parameter in state.model.parameters())
        log.info("run folder:   %s", self.folder.path)
        log.info("device:       asked %s, got %s", task.device.requested, task.device.resolved)
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
                "LEAKY SPLIT:  %d of %d validation patients are trained on; no number of this run is a score on new patients",
                shared,
                len(self.split.validation),
            )
        log.info(
            "model:        %s, %s parameters; %d steps of %d slices, %d an epoch",
            task.config.model.name,
            f"{parameters:,}",
            state.total_steps,
            task.config.batch_size * task.config.accumulate,
            task.steps_per_epoch,
        )
        self._warn_of_few_steps()
        if state.total_steps < task.steps_per_epoch:
            share = state.total_steps / task.steps_per_epoch
            log.warning(
                "note:         that is %.1f of an epoch: not every slice is seen once, and there is one validation",
                share,
            )
        schedule = task.config.scheduler
        if isinstance(schedule, StepConfig) and all(
            epoch * task.steps_per_epoch >= state.total_steps for epoch in schedule.epochs
        ):
            log.warning(
                "note:         scheduler=step drops the rate at epochs %s: the run ends before that",
                schedule.epochs,
            )
        inference = task.config.inference
        if inference.min_volume and inference.components != "min_volume":
            log.warning(
                "note:         inference.min_volume=%d says nothing under inference.components=%s",
                inference.min_volume,
                inference.components,
            )
        if state.half_steps:
            log.info(
                "half size:    the first %d steps, into epoch %d; val/dice, always of full size, says little before",
                state.half_steps,
                (state.half_steps - 1) // task.steps_per_epoch,
            )
        if state.step:
            log.info("resumed:      at epoch %d, step %d", state.epoch, state.step)
        self.follow(self.folder, state)

    def _warn_of_few_steps(self) -> None:
        if self.state.total_steps < FEW_STEPS:
            log.warning(
                "note:         the run has %d optimizer steps: fewer than %d seldom teach a network anything; %s",
                self.state.total_steps,
                FEW_STEPS,
                "raise " + training_budget(self.task.config)[0],
            )

    def _conclude_plan(self) -> None:
        """Log how many steps the minutes gave in the end, where the first plan had others."""
        plans = self.state.plans
        if plans and plans[-1].is_settled and plans[-1].total != plans[0].total:
            log.info(
                "steps:        %d in %g minutes; the first estimate was %d",
                plans[-1].total,
                self.task.config.max_minutes,
                plans[0].total,
            )
            if plans[0].total >= FEW_STEPS:
                self._warn_of_few_steps()

    def _progress(self, state: State) -> None:
        if self.bar is not None:
            dice = f"{state.best:.3f}" if state.best_epoch >= 0 else "-"
            # On a GPU the first losses are not read before the epoch ends.
            loss = f"{state.last_loss:.3f}" if math.isfinite(state.last_loss) else "-"
            self.bar.set_postfix_str(
                f"epoch {state.epoch} loss {loss} best val/dice {dice}", refresh=False
            )
            self.bar.total = state.total_steps
            self.bar.update(1)

    def _after_step(self, state: State) -> None:
        self._progress(state)
        self._tell_mlflow()  # not earlier: MLflow takes longer to import than all else up to the first step
        checkpoints = self.task.config.checkpoint
        due = (
            checkpoints.every_steps is not None
            and state.step - self.saved_step >= checkpoints.every_steps
        )
        due = due or (
            checkpoints.every_minutes is not None
            and time.monotonic() - self.saved_at >= checkpoints.every_minutes * 60
        )
        if due:
            self._save(state)
        self._after_patient(state)

    def _tell_mlflow(self) -> None:
        """Once, that the run is there and running."""
        if self.mirror is not None and not self.mirrored:
            self.mirrored = True
            self.mirror.update()

    def _after_patient(self, state: State) -> None:
        """Between two steps, or two validated patients: the moments at which a signal may end the run."""
        try:
            self.signals.poll()
        except Interrupted:
            self._save(state)
            raise

    def _after_epoch(self, state: State, improved: bool) -> None:
        self._save(state, improved)
        metrics = state.history[-1]["metrics"]
        validated = "".join(
            f"{name} {metrics[name]:.4f}  " for name in ("val/loss", "val/dice") if name in metrics
        )
        log.info(
            "epoch %3d  train/loss %.4f  %s%s%.1f s",
            state.epoch - 1,
            metrics["train/loss"],
            validated,
            "best   " if improved else " " * 7 if validated else "",
            metrics["speed/epoch_seconds"],
        )
        if "val/dice" in metrics and state.predicts_nothing:
            # A patient without tumour has a Dice of 1 as long as nothing is predicted.
            flattered = (
                "; val/dice is that of patients without tumour" if metrics["val/dice"] else ""
            )
            log.info("           the network predicts nothing yet%s", flattered)
        elif metrics.get("val/dice") == 0:
            log.info("           no pixel that the network predicts is tumour yet")
        if self.mirror is not None:
            self.mirror.update()
        self.follow(self.folder, state)

    def _save(self, state: State, improved: bool = False) -> None:
        save(self.folder, state, self.task, self.split, improved)
        self.saved_at, self.saved_step = time.monotonic(), state.step


@contextmanager
def mirroring(folder: Path, config: TrackingConfig) -> Iterator[Mirror | None]:
    """The run's mirror in MLflow, None under tracking=none; brought up to date when the block ends, however it ends.

    Enter it before `RunFolder.active`: the status that it sends last is the one with which that ends.
    """
    mirror = None if config.name == "none" else Mirror(folder)
    try:
        yield mirror
    finally:
        if mirror is not None and mirror.begun:
            mirror.update(final=True)


def describe_result(
    folder: Path, metrics: dict[str, float], explained: str, mirror: Mirror | None
) -> str:
    """The last lines of a run: its table, how to read it, and where everything is."""
    leaky = (
        ", leaky=true: validation patients were trained on"
        if RunFolder(folder).facts["split"]["leaky"]
        else ""
    )
    scores = tables.metrics_table(metrics, f"Scores of the best epoch, over whole patients{leaky}")
    lines = [scores, explained, "", f"run folder:    {folder}"]
    lines += [f"pictures:      {folder / 'pictures'}/curves.png, overlays.png"]
    lines += (
        [mirror.describe()]
        if mirror is not None
        else [f"MLflow:        off; later: python -m brainseg.sync {folder}"]
    )
    return "\n".join(lines)
