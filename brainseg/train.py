"""A training run, from its config to the folder with its scores. Read `run` from top to bottom.

    python -m brainseg.train                                   the phantom cohort, in minutes
    python -m brainseg.train data.path=lgg.h5 model.depth=5    real slices
    python -m brainseg.train -m model.depth=3,4,5 seed=0,1,2   a sweep

Each run has a folder below runs/ with its scores, curves and checkpoints, and a page in MLflow.
"""

import logging
from pathlib import Path

from brainseg.cli.main import run_command
from brainseg.config import TrainConfig
from brainseg.core.signals import Signals
from brainseg.data import memory_cache
from brainseg.data.open import RunData, open_run_data
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.reports import figures
from brainseg.reports.scores import Results
from brainseg.reports.tables import metrics_table
from brainseg.runs import checkpoint
from brainseg.runs.callbacks import EpochCallback, RunCallbacks, mirroring, no_callback
from brainseg.runs.find import claim_run_folder
from brainseg.runs.finished_run import describe_finished_run, extends_finished_run
from brainseg.runs.identity import compute_identity, training_budget
from brainseg.runs.initial import initialise, load_initial, log_initial
from brainseg.runs.job import Job, JobState, Outcome, tests_patients
from brainseg.runs.metadata import folder_name, run_metadata
from brainseg.runs.repeat import exact_steps, repeat_command, write_hashes
from brainseg.runs.request_check import check_request
from brainseg.runs.result import describe_result
from brainseg.runs.resume import (
    LENGTH_DEPENDENT_SCHEDULES,
    check_extension,
    plans_to_repeat,
    restore_run,
)
from brainseg.runs.run_folder import RunFolder
from brainseg.training.build import build_state, build_task
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit
from brainseg.training.state import State
from brainseg.training.time_budget import make_first_plan

# The default of `run`: a single run that belongs to no sweep.
SINGLE_RUN = Job()
log = logging.getLogger("brainseg")


def run(
    config: TrainConfig, job: Job = SINGLE_RUN, epoch_callback: EpochCallback = no_callback
) -> Outcome:
    """Train, validate, test and report a run, and return its outcome.

    `epoch_callback` is called before the first step and after each epoch. It may end the run by
    raising `Stopped`. An exception that makes the run fail is recorded in the run folder and raised
    again.
    """
    device = choose_device(config.device, job.threads, job.gpu)
    # Patients are assigned to training, validation and test before a pixel is read.
    data = open_run_data(config.data, config.split)
    is_tested = len(data.test) > 0 and tests_patients(config.test, job.choosing)

    # The same settings, data, split and code find the same folder again. The run in it is resumed,
    # or skipped if it has finished.
    source = load_initial(config.initial)
    is_leaky = source is not None and source.check_leaks(data.store, data.split, config.leaky)
    initial_hash = source.sha256 if source is not None else ""
    digest = compute_identity(config, data.store.fingerprint, data.split, initial=initial_hash)
    folder = claim_run_folder(config, job, folder_name(config, digest))
    if folder.exists:
        folder.check_settings(config)
        folder.check_data(data.store.fingerprint, data.split)
        folder.check_initial(initial_hash)
        # The bits of a run depend on the number of threads, so a resumed run keeps it.
        device = choose_device(config.device, folder.threads or job.threads, job.gpu)
    starts_over = job.sweep is not None and folder.state == "failed"
    if folder.status["state"] == "finished" and not extends_finished_run(folder, config):
        return _skip_finished_run(folder, config, is_tested)

    # The state is all that a step changes and all that a checkpoint contains.
    task = build_task(config, device, data)
    state = build_state(task)
    initial = initialise(state, task, source, is_leaky) if source is not None else None
    facts = run_metadata(config, job, data.store, data.split, device, digest, state.model, initial)
    if not starts_over:
        check_extension(folder, task)
    with (
        Signals() as signals,
        mirroring(folder, config.tracking) as mirror,
        folder.active(facts, config, data.split),
    ):
        if starts_over:
            folder.reset()
        parts = (data.train, data.validation)
        memory_cache.cache_in_memory(parts, device.torch, config.data.resident)
        if not restore_run(state, folder, task):
            if source is not None and initial is not None:
                log_initial(source, initial, task, data.split)
            if config.max_minutes is not None:
                _plan_steps(state, task, signals)
        with RunCallbacks(
            folder, task, state, data.split, signals, mirror, epoch_callback
        ).active() as hooks:
            fit(state, task, hooks)
        results = _score(state, task, data, folder, is_tested, signals)
        figures.draw_curves(state.history, folder.path / "pictures" / "curves.png")
        # Another machine fits another number of steps into the same minutes.
        repeat = {"repeat": repeat_command(folder, state)} if state.plans else {}
        metrics = results.write(
            folder.path, {"best": describe_best(state), "leaky": facts["split"]["leaky"], **repeat}
        )
        folder.remove_old_checkpoints(config.checkpoint.keep)
        write_hashes(folder.path)
    log.debug("%s%s", metrics_table(metrics, "All scores"), results.legend())
    log.info("%s", describe_result(folder, metrics, results.explain(), mirror))
    if repeat:
        steps = " ".join(exact_steps(state))
        log.info("repeat:        from=%s, or on another machine %s", folder.path, steps)
    # A signal that came too late for this run must still end its sweep.
    signals.poll()
    return Outcome(JobState.FINISHED, str(folder.path))


def _skip_finished_run(folder: RunFolder, config: TrainConfig, is_tested: bool) -> Outcome:
    """Log how the finished run in `folder` could be extended, and return the outcome."""
    # A longer cosine or one-cycle schedule is another curve, which only force=true allows.
    force = " and force=true" if config.scheduler.name in LENGTH_DEPENDENT_SCHEDULES else ""
    log.info(
        "%s: finished before, nothing to do; to extend it, give resume=%s and a larger %s%s",
        folder.path,
        folder.path,
        training_budget(config)[0],
        force,
    )
    return Outcome(JobState.SKIPPED, str(folder.path), describe_finished_run(folder, is_tested))


def _plan_steps(state: State, task: TrainingContext, signals: Signals) -> None:
    """Set the number of steps of a time budget, timed here or taken from the run `steps_of`."""
    if plans := plans_to_repeat(task.config):
        state.adopt_plans(plans)
        return
    # A signal must also be able to stop the timing of the first steps.
    callbacks = Callbacks(after_step=lambda _: signals.poll())
    make_first_plan(state, build_state(task), task, callbacks)


def _score(
    state: State,
    task: TrainingContext,
    data: RunData,
    folder: RunFolder,
    is_tested: bool,
    signals: Signals,
) -> Results:
    """Return the scores of the best weights on the validation patients, and on the test patients.

    Without validation patients the weights are those of the last epoch. Test patients are scored if
    `is_tested`.
    """
    config = task.config
    state.evaluated_model.load_state_dict(checkpoint.load(folder.best)["model"])
    results = Results(data.train, config.predictions)
    parts = {"validation": data.validation} if len(data.validation) else {}
    parts |= {"test": data.test} if is_tested else {}
    for role, part in parts.items():
        for result in evaluate(
            state.evaluated_model,
            part,
            config.inference,
            task.device,
            config.batch_size,
            task.criterion_on_cpu,
        ):
            # Under a leaky split the patient may also be a training patient.
            results.add([result], {result.score.patient: role})
            signals.poll()
    return results


def describe_best(state: State) -> dict[str, float]:
    """Return epoch and val/dice of the weights in best.pt, without val/dice if nothing validates.

    The epoch is then the last one.
    """
    is_validated = any("val/dice" in row["metrics"] for row in state.history)
    return {"epoch": state.best_epoch} | ({"val/dice": state.best} if is_validated else {})


def main() -> None:
    """Run `python -m brainseg.train` or `brainseg train`."""
    run_command("train", run, check_request, finish=summarise_sweep)


def summarise_sweep(sweep: str, root: Path, config: TrainConfig) -> str:
    """Compare the finished runs of a sweep, and write its report, its figures and its MLflow run.

    Returns the text to print.
    """
    # compare imports matplotlib and pandas, and a run's first step must not wait for them.
    from brainseg import compare

    return compare.summarise_sweep(sweep, root, config.tracking)


if __name__ == "__main__":
    # A launcher's processes import `run` by the name of its module, which must not be __main__.
    from brainseg import train

    train.main()
