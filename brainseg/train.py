"""A training run, from its config to the folder with its scores. Read `run` from top to bottom.

    python -m brainseg.train                                   the phantom cohort, in minutes
    python -m brainseg.train data.path=lgg.h5 model.depth=5    real slices
    python -m brainseg.train -m model.depth=3,4,5 seed=0,1,2   a sweep

Each run has a folder below runs/ with its scores, curves and checkpoints, and a page in MLflow.
"""

import logging
import os
from pathlib import Path

import torch

from brainseg.cli.main import run_command
from brainseg.config import TrainConfig
from brainseg.core.errors import DeviceMissingError, check
from brainseg.core.seeds import seed_for
from brainseg.core.signals import Signals
from brainseg.data import memory_cache
from brainseg.data.augment import can_replace_by_flair
from brainseg.data.dataset import MRIDataset, epoch_order
from brainseg.data.open import count_in_channels, open_store, read_dataset_info, read_fingerprint
from brainseg.data.plausibility import check_parts
from brainseg.data.split import Split, make_split
from brainseg.data.store import Store
from brainseg.device import choose_device, peak_memory, restoring_threads
from brainseg.evaluation.evaluate import evaluate
from brainseg.evaluation.inference import check_components, check_threshold
from brainseg.models import networks
from brainseg.reports import figures
from brainseg.reports.scores import Results
from brainseg.runs import checkpoint
from brainseg.runs.callbacks import (
    EpochCallback,
    RunCallbacks,
    describe_result,
    mirroring,
    no_callback,
)
from brainseg.runs.dry_run import JobCheck, describe_finished_run, extends_finished_run
from brainseg.runs.find import claim_run_folder, resolve_run
from brainseg.runs.identity import compute_identity, training_budget
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.runs.metadata import folder_name, run_metadata
from brainseg.runs.resume import (
    LENGTH_DEPENDENT_SCHEDULES,
    check_curve,
    check_extension,
    load_newest_checkpoint,
    plans_to_repeat,
)
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.client import tracking_uri
from brainseg.training import losses, optimizers
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit
from brainseg.training.state import State
from brainseg.training.time_budget import make_first_plan, measure_pace
from brainseg.training.trial_step import check_training_step

# The default of `run`: a single run that belongs to no sweep.
SINGLE_RUN = Job()
log = logging.getLogger("brainseg")


def run(config: TrainConfig, job: Job = SINGLE_RUN, follow: EpochCallback = no_callback) -> Outcome:
    """Train, validate, test and report a run, and return its outcome.

    `follow` is called before the first step and after each epoch. It may end the run by raising
    `Stopped`. An exception that makes the run fail is recorded in the run folder and raised again.
    """
    device = choose_device(config.device, job.threads, job.gpu)

    # Patients are assigned to training, validation and test before a pixel is read.
    store = open_store(config.data)
    split = make_split(config.split, read_dataset_info(config.data).patients)
    train, validation, test = (
        build_dataset(store, config, part) for part in (split.train, split.validation, split.test)
    )
    is_tested = len(test) > 0 and (
        config.test == "yes" or (config.test == "auto" and not job.choosing)
    )

    # The same settings, data, split and code find the same folder again. The run in it is resumed,
    # or skipped if it has finished.
    digest = compute_identity(config, store.fingerprint, split)
    folder = claim_run_folder(config, job, folder_name(config, digest))
    if folder.exists:
        folder.check_settings(config)
        folder.check_data(store.fingerprint, split)
        # The bits of a run depend on the number of threads, so a resumed run keeps it.
        device = choose_device(config.device, folder.threads or job.threads, job.gpu)
    starts_over = job.sweep is not None and folder.state == "failed"
    if folder.status["state"] == "finished" and not extends_finished_run(folder, config):
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

    # networks, losses and optimizers build objects from names. The state is all that a step changes
    # and all that a checkpoint contains.
    criterion = losses.build_loss(config.loss, networks.num_outputs(store.classes)).to(device.torch)
    task = TrainingContext(config, device, train, validation, criterion)
    state = build_state(task)
    facts = run_metadata(config, job, store, split, device, digest, state.model)
    if not starts_over:
        check_extension(folder, task)
    with (
        Signals() as signals,
        mirroring(folder.path, config.tracking) as mirror,
        folder.active(facts, config, split),
    ):
        if starts_over:
            folder.reset()
        memory_cache.cache_in_memory((train, validation), device.torch, config.data.resident)
        if not load_newest_checkpoint(state, folder, task) and config.max_minutes is not None:
            # A signal must also be able to stop the timing of the first steps.
            callbacks = Callbacks(after_step=lambda _: signals.poll())
            if plans := plans_to_repeat(config):
                state.adopt_plans(plans)
            else:
                make_first_plan(state, build_state(task), task, callbacks)

        with RunCallbacks(
            folder, task, state, split, signals, mirror, follow
        ).show_progress() as hooks:
            fit(state, task, hooks)

        # The weights of the best epoch are evaluated on the validation patients. They are evaluated
        # on held-out patients unless a sweep is still choosing between settings.
        state.evaluated_model.load_state_dict(checkpoint.load(folder.best)["model"])
        results = Results(train, config.predictions)
        parts = {"validation": validation} | ({"test": test} if is_tested else {})
        for role, part in parts.items():
            for result in evaluate(
                state.evaluated_model,
                part,
                config.inference,
                device,
                config.batch_size,
                task.criterion_on_cpu,
            ):
                # Under a leaky split the patient may also be a training patient.
                results.add([result], {result.score.patient: role})
                signals.poll()
        figures.draw_curves(state.history, folder.path / "pictures" / "curves.png")
        metrics = results.write(
            folder.path,
            {"best": {"epoch": state.best_epoch, "val/dice": state.best}, "leaky": split.leaky},
        )
        folder.remove_old_checkpoints(config.checkpoint.keep)
    print(describe_result(folder.path, metrics, results.explain(), mirror))
    # A signal that came too late for this run must still end its sweep.
    signals.poll()
    return Outcome(JobState.FINISHED, str(folder.path))


def build_dataset(store: Store, config: TrainConfig, patients: tuple[str, ...]) -> MRIDataset:
    """Return the dataset of these patients' slices, with the channels that the config names."""
    return MRIDataset(
        store, patients=patients, channel=config.data.channel, context=config.data.context
    )


def build_state(task: TrainingContext) -> State:
    """Return model, optimizer and schedule before the first step.

    The initial weights are a function of `seed`.
    """
    config = task.config
    torch.manual_seed(seed_for(config.seed, "weights"))
    outputs = networks.num_outputs(task.train.store.classes)
    model = task.device.place(
        networks.build_network(config.model, task.train.channels, outputs, task.train.size)
    )
    optimizer = optimizers.build_optimizer(config.optimizer, model.parameters())
    return State.create(model, optimizer, config, task.device, config.epochs * task.steps_per_epoch)


def check_request(config: TrainConfig) -> JobCheck:
    """Check a request before anything is created, and return the facts that a dry run prints.

    Raises RequestError. Under device.on_missing=skip a missing device is no error, and the facts
    contain the reason.
    """
    ranks = os.environ.get("WORLD_SIZE", "1")
    check(
        ranks == "1",
        "WORLD_SIZE",
        ranks,
        "under torchrun every rank would run the whole request",
        "start the command with plain python",
    )
    device, missing = config.device.name, ""
    with restoring_threads():
        try:
            device = choose_device(config.device).description
        except DeviceMissingError as error:
            if config.device.on_missing == "error":
                raise
            missing = str(error)
    info = read_dataset_info(config.data)
    split = make_split(config.split, info.patients)
    if config.data.path is not None and not config.allow_empty:
        with open_store(config.data) as store:
            check_parts(store, split)
    two_sizes = config.half_resolution > 0 and networks.needs_fixed_size(config.model)
    check(
        not two_sizes,
        "half_resolution",
        config.half_resolution,
        f"model.name={config.model.name} takes images of one size only",
        "set it to 0, or choose another network",
    )
    slices = _epoch_length(config, split)
    parameters = check_training_step(
        config, count_in_channels(config.data, info), info.classes, info.size, slices
    )
    check_threshold(config.inference, info.classes)
    check_components(config.inference)
    sequences = info.channels if config.data.channel is None else [config.data.channel]
    check(
        not config.augment.missing or can_replace_by_flair(sequences),
        "augment.missing",
        config.augment.missing,
        f"FLAIR replaces a missing sequence, but the sequences are {', '.join(sequences)}",
        "set it to 0",
    )
    if config.resume not in (None, "auto", "never"):
        resumed_run = RunFolder(resolve_run(config.resume))
        resumed_run.check_settings(config)
        check_curve(resumed_run.config, config)
    if config.steps_of is not None:
        resolve_run(config.steps_of, "steps_of")
    if config.tracking.name != "none":
        tracking_uri(config.tracking.uri)
    is_free = (
        config.output is None
        or config.resume not in (None, "never")
        or not (Path(config.output) / "run.json").is_file()
    )
    check(
        is_free,
        "output",
        config.output,
        "already contains a run",
        "resume it with resume=auto, or choose another folder",
    )
    patients = f"{len(split.train)}/{len(split.validation)}/{len(split.test)}"
    digest_of_data = read_fingerprint(config.data)
    if digest_of_data is None:
        return JobCheck(parameters, patients, device, missing)
    name = folder_name(config, compute_identity(config, digest_of_data, split))
    return JobCheck(
        parameters,
        patients,
        device,
        missing,
        name,
        compute_identity(config, digest_of_data, split, code=""),
    )


def _epoch_length(config: TrainConfig, split: Split) -> int:
    """Return the number of slices of an epoch, or an estimate if the phantom does not exist yet.

    Raises RequestError if the training slices cannot give `data.tumour_share`.
    """
    if read_fingerprint(config.data) is None:
        return config.data.phantom.slices * len(split.train)
    with open_store(config.data) as store:
        return len(
            epoch_order(
                build_dataset(store, config, split.train), config.seed, 0, config.data.tumour_share
            )
        )


def measure(config: TrainConfig, threads: int | None = None) -> tuple[float, int]:
    """Return the seconds and the bytes of memory of a run, estimated from a few steps.

    The memory is that of the GPU if the run computes on one. `threads` is a launcher's share of the
    cores, as in `Job`. Call this function in a process of its own, because a process keeps the
    memory of earlier work.
    """
    device = choose_device(config.device, threads)
    store = open_store(config.data)
    split = make_split(config.split, read_dataset_info(config.data).patients)
    train, validation = (
        build_dataset(store, config, split.train),
        build_dataset(store, config, split.validation),
    )
    criterion = losses.build_loss(config.loss, networks.num_outputs(store.classes)).to(device.torch)
    task = TrainingContext(config, device, train, validation, criterion)
    memory_cache.cache_in_memory((train, validation), device.torch, config.data.resident)
    pace = measure_pace(build_state(task), task, Callbacks())
    # The first part of the steps sees images of half the size, which cost less.
    step = config.half_resolution * pace.half_step + (1 - config.half_resolution) * pace.step
    seconds = config.epochs * (
        task.steps_per_epoch * step + pace.validation / config.validate_every
    )
    return config.max_minutes * 60 if config.max_minutes else seconds, peak_memory(device)


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
