"""One training run, from a config to a folder that holds its number: read `run` from top to bottom.

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
from brainseg.data.augment import can_miss
from brainseg.data.dataset import MRIDataset, epoch_order
from brainseg.data.open import fingerprint, in_channels, open_store, read_dataset_info
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
from brainseg.runs.dry_run import JobCheck, extends, finished_before
from brainseg.runs.find import claim_run_folder, resolve_run
from brainseg.runs.identity import identity, training_budget
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.runs.metadata import folder_name, run_metadata
from brainseg.runs.resume import PLANNED, check_curve, check_extension, load_into, plans_to_repeat
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.client import tracking_uri
from brainseg.training import losses, optimizers
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit
from brainseg.training.state import State
from brainseg.training.time_budget import begin_plan, measure_pace
from brainseg.training.trial_step import check_training_step

ALONE = Job()
log = logging.getLogger("brainseg")


def run(config: TrainConfig, job: Job = ALONE, follow: EpochCallback = no_callback) -> Outcome:
    """Train, validate, test and report one run; returns how it ended. What a run dies of is in its folder, and raised.

    `follow` sees it before the first step and after each epoch, and may end it there by raising `Stopped`.
    """
    device = choose_device(config.device, job.threads, job.gpu)

    # Patients are dealt to training, validation and test before a pixel is read.
    store = open_store(config.data)
    split = make_split(config.split, read_dataset_info(config.data).patients)
    train, validation, test = (
        dataset(store, config, part) for part in (split.train, split.validation, split.test)
    )
    testing = len(test) > 0 and (
        config.test == "yes" or (config.test == "auto" and not job.choosing)
    )

    # The same settings, data, split and code find the same folder again: resume or skip.
    digest = identity(config, store.fingerprint, split)
    folder = claim_run_folder(config, job, folder_name(config, digest))
    if folder.exists:
        folder.check_settings(config)
        folder.check_data(store.fingerprint, split)
        device = choose_device(
            config.device, folder.threads or job.threads, job.gpu
        )  # its bits depend on the number of threads
    anew = job.sweep is not None and folder.state == "failed"
    if folder.status["state"] == "finished" and not extends(folder, config):
        longer = f"{training_budget(config)[0]}=..." + (
            " force=true" if config.scheduler.name in PLANNED else ""
        )
        log.info(
            "%s: finished before, nothing to do; a larger %s with resume=%s extends it",
            folder.path,
            longer,
            folder.path,
        )
        return Outcome(JobState.SKIPPED, str(folder.path), finished_before(folder, testing))

    # Names become objects in networks, losses and optimizers; the state is all that a step changes, and all that a checkpoint keeps.
    criterion = losses.build_loss(config.loss, networks.num_outputs(store.classes)).to(device.torch)
    task = TrainingContext(config, device, train, validation, criterion)
    state = new_state(task)
    facts = run_metadata(config, job, store, split, device, digest, state.model)
    if not anew:
        check_extension(folder, task)
    with (
        Signals() as signals,
        mirroring(folder.path, config.tracking) as mirror,
        folder.active(facts, config, split),
    ):
        if anew:
            folder.forget()
        memory_cache.cache_in_memory((train, validation), device.torch, config.data.resident)
        if not load_into(state, folder, task) and config.max_minutes is not None:
            stoppable = Callbacks(after_step=lambda _: signals.poll())
            if plans := plans_to_repeat(config):
                state.follow(plans)
            else:
                begin_plan(state, new_state(task), task, stoppable)

        with RunCallbacks(folder, task, state, split, signals, mirror, follow).showing() as hooks:
            fit(state, task, hooks)

        # The best epoch's weights, on validation patients and, unless a sweep is choosing, on patients that chose nothing.
        state.validated.load_state_dict(checkpoint.load(folder.best)["model"])
        results = Results(train, config.predictions)
        parts = {"validation": validation} | ({"test": test} if testing else {})
        for role, part in parts.items():
            for evaluated in evaluate(
                state.validated,
                part,
                config.inference,
                device,
                config.batch_size,
                task.criterion_on_cpu,
            ):
                results.add(
                    [evaluated], {evaluated.score.patient: role}
                )  # under a leaky split it may be a training patient too
                signals.poll()
        figures.draw_curves(state.history, folder.path / "pictures" / "curves.png")
        metrics = results.write(
            folder.path,
            {"best": {"epoch": state.best_epoch, "val/dice": state.best}, "leaky": split.leaky},
        )
        folder.tidy(config.checkpoint.keep)
    print(describe_result(folder.path, metrics, results.explained(), mirror))
    signals.poll()  # one that came too late for this run still ends its sweep
    return Outcome(JobState.FINISHED, str(folder.path))


def dataset(store: Store, config: TrainConfig, patients: tuple[str, ...]) -> MRIDataset:
    """The slices of these patients, with the channels that the config names."""
    return MRIDataset(
        store, patients=patients, volume=config.data.volume, context=config.data.context
    )


def new_state(task: TrainingContext) -> State:
    """Model, optimizer and schedule before the first step; the initial weights are a function of `seed`."""
    config = task.config
    torch.manual_seed(seed_for(config.seed, "weights"))
    outputs = networks.num_outputs(task.train.store.classes)
    model = task.device.place(
        networks.build_network(config.model, task.train.channels, outputs, task.train.size)
    )
    optimizer = optimizers.build_optimizer(config.optimizer, model.parameters())
    return State.create(model, optimizer, config, task.device, config.epochs * task.steps_per_epoch)


def check_request(config: TrainConfig) -> JobCheck:
    """All that can be refused before anything is created, and what a dry run prints. Raises RequestError.

    Under device.on_missing=skip a device that is not there is no error but among the facts.
    """
    ranks = os.environ.get("WORLD_SIZE", "1")
    check(
        ranks == "1",
        "WORLD_SIZE",
        ranks,
        "under torchrun every rank would run the whole request",
        "start it with plain python",
    )
    device, missing = config.device.name, ""
    with restoring_threads():
        try:
            device = choose_device(config.device).resolved
        except DeviceMissingError as error:
            if config.device.on_missing == "error":
                raise
            missing = str(error)
    found = read_dataset_info(config.data)
    split = make_split(config.split, found.patients)
    if config.data.path is not None and not config.allow_empty:
        with open_store(config.data) as store:
            check_parts(store, split)
    two_sizes = config.half_resolution > 0 and networks.needs_fixed_size(config.model)
    check(
        not two_sizes,
        "half_resolution",
        config.half_resolution,
        f"model.name={config.model.name} takes images of one size alone",
        "set it to 0, or choose another network",
    )
    slices = _epoch_length(config, split)
    parameters = check_training_step(
        config, in_channels(config.data, found), found.classes, found.size, slices
    )
    check_threshold(config.inference, found.classes)
    check_components(config.inference)
    sequences = found.channels if config.data.volume is None else [config.data.volume]
    check(
        not config.augment.missing or can_miss(sequences),
        "augment.missing",
        config.augment.missing,
        f"FLAIR stands in for what is missing, and the sequences are {', '.join(sequences)}",
        "set it to 0",
    )
    if config.resume not in (None, "auto", "never"):
        named = RunFolder(resolve_run(config.resume))
        named.check_settings(config)
        check_curve(named.config, config)
    if config.steps_of is not None:
        resolve_run(config.steps_of, "steps_of")
    if config.tracking.name != "none":
        tracking_uri(config.tracking.uri)
    free = (
        config.output is None
        or config.resume not in (None, "never")
        or not (Path(config.output) / "run.json").is_file()
    )
    check(
        free,
        "output",
        config.output,
        "holds a run already",
        "resume=auto goes on with it; or give another folder",
    )
    patients = f"{len(split.train)}/{len(split.validation)}/{len(split.test)}"
    digest_of_data = fingerprint(config.data)
    if digest_of_data is None:
        return JobCheck(parameters, patients, device, missing)
    name = folder_name(config, identity(config, digest_of_data, split))
    return JobCheck(
        parameters,
        patients,
        device,
        missing,
        name,
        identity(config, digest_of_data, split, code=""),
    )


def _epoch_length(config: TrainConfig, split: Split) -> int:
    """Return the number of slices of an epoch, as far as it can be known without making the phantom.

    Raises RequestError if the training slices cannot give `data.tumour_share`.
    """
    if fingerprint(config.data) is None:
        return config.data.phantom.slices * len(split.train)
    with open_store(config.data) as store:
        return len(
            epoch_order(
                dataset(store, config, split.train), config.seed, 0, config.data.tumour_share
            )
        )


def measure(config: TrainConfig, threads: int | None = None) -> tuple[float, int]:
    """Seconds that the run would take and bytes of memory that it needs, from a few steps on its data and device.

    `threads` is a launcher's share, as in Job. Call it in a process of its own: a process keeps the memory of what it did
    before. On a GPU it is the GPU's memory.
    """
    device = choose_device(config.device, threads)
    store = open_store(config.data)
    split = make_split(config.split, read_dataset_info(config.data).patients)
    train, validation = (
        dataset(store, config, split.train),
        dataset(store, config, split.validation),
    )
    criterion = losses.build_loss(config.loss, networks.num_outputs(store.classes)).to(device.torch)
    task = TrainingContext(config, device, train, validation, criterion)
    memory_cache.cache_in_memory((train, validation), device.torch, config.data.resident)
    pace = measure_pace(new_state(task), task, Callbacks())
    step = config.half_resolution * pace.half_step + (1 - config.half_resolution) * pace.step
    seconds = config.epochs * (
        task.steps_per_epoch * step + pace.validation / config.validate_every
    )
    return config.max_minutes * 60 if config.max_minutes else seconds, peak_memory(device)


def main() -> None:
    """Entry point of `python -m brainseg.train` and `brainseg train`."""
    run_command("train", run, check_request, finish=summarise_sweep)


def summarise_sweep(sweep: str, root: Path, config: TrainConfig) -> str:
    """Compare what has finished of a sweep; its report, its pictures and its MLflow run."""
    from brainseg import (
        compare,
    )  # with matplotlib and pandas, which a run's first step need not wait for

    return compare.summarise_sweep(sweep, root, config.tracking)


if __name__ == "__main__":
    from brainseg import (
        train,
    )  # not as __main__: a launcher's processes import what they run by its name

    train.main()
