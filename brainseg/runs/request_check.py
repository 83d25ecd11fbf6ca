"""Checks of a request to train that need the data, before anything is created.

Checks of single settings are in `config`. The trial of the network, the loss and the optimizer is
in `training/trial_step.py`.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from brainseg.config import TrainConfig
from brainseg.core.errors import DeviceMissingError, check
from brainseg.data.augment import can_replace_by_flair
from brainseg.data.epoch_order import epoch_order
from brainseg.data.input_settings import typed_window_size, window_size
from brainseg.data.open import (
    DatasetInfo,
    count_in_channels,
    open_dataset,
    open_store,
    read_dataset_info,
    read_fingerprint,
)
from brainseg.data.plausibility import check_parts
from brainseg.data.split import Split, make_split
from brainseg.device import choose_device, restoring_threads
from brainseg.evaluation.inference import check_components, check_threshold
from brainseg.models import networks
from brainseg.runs.dry_run import JobCheck
from brainseg.runs.find import resolve_run
from brainseg.runs.identity import compute_identity
from brainseg.runs.initial import load_initial
from brainseg.runs.metadata import folder_name
from brainseg.runs.resume import check_curve
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.client import tracking_uri
from brainseg.training.cuda_graphs import check_graphs
from brainseg.training.trial_step import check_training_step


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
    device, missing = _find_device(config)
    info = read_dataset_info(config.data)
    split = make_split(config.split, info.patients)
    digest = read_fingerprint(config.data)
    slices, size = _check_data(config, info, split, is_made=digest is not None)
    _check_settings_of_data(config, info, split)
    check_graphs(config)
    parameters = check_training_step(
        config, count_in_channels(config.data, info), info.classes, size, slices
    )
    initial = _check_initial(config, info, split, size, is_made=digest is not None)
    _check_runs_and_output(config, initial)
    facts = JobCheck(
        parameters, f"{len(split.train)}/{len(split.validation)}/{len(split.test)}", device, missing
    )
    if digest is None:
        return facts
    return replace(
        facts,
        name=folder_name(config, compute_identity(config, digest, split, initial=initial)),
        recipe=compute_identity(config, digest, split, code="", initial=initial),
    )


def _find_device(config: TrainConfig) -> tuple[str, str]:
    """Return the device in words, and the reason why it is missing under on_missing=skip."""
    with restoring_threads():
        try:
            return choose_device(config.device).description, ""
        except DeviceMissingError as error:
            if config.device.on_missing == "error":
                raise
            return config.device.name, str(error)


def _check_data(
    config: TrainConfig, info: DatasetInfo, split: Split, is_made: bool
) -> tuple[int, tuple[int, int]]:
    """Return the number of slices of an epoch, and the height and width of a training image.

    Both are estimates if the phantom `is_made` only later. Raises RequestError for implausible
    masks, and if the training slices cannot give `data.tumour_share`.
    """
    if not is_made:
        size = typed_window_size(config.data.window, info.size) or info.size
        return config.data.phantom.slices * len(split.train), size
    with open_store(config.data) as store:
        if config.data.path is not None and not config.allow_empty:
            check_parts(store, split)
        window = window_size(store, config.data.window, split.train)
        train = open_dataset(store, config.data, split.train, window)
        order = epoch_order(
            train, config.seed, 0, config.data.tumour_share, config.data.even_patients
        )
        return len(order), train.sample_size


def _check_settings_of_data(config: TrainConfig, info: DatasetInfo, split: Split) -> None:
    """Raise RequestError for a setting that makes no sense for these data or this split."""
    is_fixed = networks.needs_fixed_size(config.model)
    for setting, value, off in (
        ("half_resolution", config.half_resolution, 0),
        ("data.window", config.data.window, "none"),
    ):
        check(
            not is_fixed or value == off,
            setting,
            value,
            f"model.name={config.model.name} takes images of one size only",
            f"set it to {off}, or choose another network",
        )
    for setting, name, needs in (
        ("patience", config.patience, config.patience is not None),
        ("scheduler", config.scheduler.name, config.scheduler.name == "plateau"),
    ):
        check(
            bool(split.validation) or not needs,
            setting,
            name,
            "depends on val/dice, and the split has no validation patients",
            "give the split validation patients, or leave this setting out",
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


def _check_initial(
    config: TrainConfig, info: DatasetInfo, split: Split, size: tuple[int, int], is_made: bool
) -> str:
    """Return the hash of the initial weights, or "" for random ones.

    Raises RequestError if the weights do not fit, or have seen held-out patients. The patients of a
    phantom that is not made yet are checked when the run starts.
    """
    source = load_initial(config.initial)
    if source is None:
        return ""
    channels = count_in_channels(config.data, info)
    outputs = networks.num_outputs(info.classes)
    with torch.random.fork_rng(devices=[]):
        source.fit(networks.build_network(config.model, channels, outputs, size), channels)
    if is_made:
        with open_store(config.data) as store:
            source.check_leaks(store, split, config.leaky)
    return source.sha256


def _check_runs_and_output(config: TrainConfig, initial: str) -> None:
    """Raise RequestError if a named run or the tracking URI is wrong, or `output` holds a run.

    `initial` is the hash of the initial weights.
    """
    if config.resume not in (None, "auto", "never"):
        resumed_run = RunFolder(resolve_run(config.resume))
        resumed_run.check_settings(config)
        resumed_run.check_initial(initial)
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
