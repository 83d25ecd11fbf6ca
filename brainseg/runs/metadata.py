"""The metadata in `run.json`: identity, data, split, device and overrides of a run."""

import dataclasses
import socket
from textwrap import shorten
from typing import Any

from torch import nn

from brainseg.config import TrainConfig
from brainseg.config.overrides import short_name, values_by_setting
from brainseg.data.split import Split
from brainseg.data.store import Store
from brainseg.device import Device
from brainseg.runs.identity import compute_identity, drop_non_identity
from brainseg.runs.job import Job
from brainseg.tracking.client import tracking_uri

# Characters of a label: MLflow shows the name in a table column.
LONGEST_LABEL = 40


def run_metadata(
    config: TrainConfig,
    job: Job,
    store: Store,
    split: Split,
    device: Device,
    digest: str,
    model: nn.Module,
    initial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of run.json that is known before the folder is created.

    `initial` describes the initial weights of a fine-tuned run.
    """
    tracking = None
    if config.tracking.name != "none":
        # The store is resolved now, so that a sync from another folder finds it. Artifacts are
        # relative to the store.
        tracking = dataclasses.asdict(config.tracking) | {"uri": tracking_uri(config.tracking.uri)}
    name = folder_name(config, digest)
    return {
        "identity": digest,
        "recipe": compute_identity(
            config, store.fingerprint, split, "", initial["sha256"] if initial else ""
        ),
        "name": name,
        "host": socket.gethostname(),
        "data": describe_store(store),
        "split": {
            "name": split.name,
            "sha256": split.sha256,
            "leaky": split.leaky or (initial is not None and initial["leaky"]),
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "device": {"asked": device.requested, "got": device.description, "threads": device.threads},
        "label": run_label(job, name),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "overrides": list(job.overrides),
        "sweep": job.sweep,
        "job": job.number,
        "start": job.start,
        "swept": list(job.swept),
        "note": config.note,
        "tags": list(config.tags),
        "tracking": tracking,
        **({"initial": initial} if initial else {}),
    }


def describe_store(store: Store) -> dict[str, Any]:
    """Return name, path, fingerprint and size of a data file."""
    return {
        "name": store.path.stem,
        "path": str(store.path.resolve()),
        "fingerprint": store.fingerprint,
        "patients": len(set(store.patients)),
        "slices": int(store.shape[0]),
    }


def run_label(job: Job, name: str) -> str:
    """Return the run's display name in MLflow, or "" if MLflow shall use `name`.

    A job of a sweep is named after the swept settings, such as `depth=3 adamw seed=0`. A single run
    is named after the typed settings that count for its identity, with the experiment first. A
    label is at most LONGEST_LABEL characters long. One that had to be shortened ends in the number
    of the job, or else in `name`.
    """
    values = values_by_setting(job.overrides)
    names = job.swept or sorted(
        drop_non_identity(values), key=lambda setting: setting != "experiment"
    )
    words = [
        _name_value(short_name(setting, names), values[setting])
        for setting in ([*values] if job.swept else names)
        if setting in names
    ]
    label = " ".join(words)
    if len(label) <= LONGEST_LABEL:
        return label
    suffix = f"... {name if job.number is None else f'job {job.number}'}"
    return shorten(label, LONGEST_LABEL, placeholder=f" {suffix}")


def _name_value(setting: str, value: str) -> str:
    """Return a word for a setting's value: the value alone if it is a name, such as adamw."""
    is_name = value.isidentifier() and value not in ("none", "null", "true", "false")
    return value if is_name else f"{setting}={value}"


def folder_name(config: TrainConfig, digest: str) -> str:
    """Return the name of the run folder with this identity, before a sibling number is added."""
    return f"{config.model.name}-{digest[:10]}"
