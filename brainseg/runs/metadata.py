"""What `run.json` says of a run from its start on: who it is, its data and split, its device, and what it was started with."""

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
from brainseg.runs.identity import drop_non_identity, identity
from brainseg.runs.job import Job
from brainseg.tracking.client import tracking_uri

LONGEST = 60  # characters of what was typed: MLflow shows a name in a column


def run_metadata(
    config: TrainConfig,
    job: Job,
    store: Store,
    split: Split,
    device: Device,
    digest: str,
    model: nn.Module,
) -> dict[str, Any]:
    """The facts of run.json, as far as they are known before the folder is."""
    tracking = None
    if config.tracking.name != "none":
        # The store is resolved now, so that a sync from another folder finds it; artifacts are relative to the store.
        tracking = dataclasses.asdict(config.tracking) | {"uri": tracking_uri(config.tracking.uri)}
    name = folder_name(config, digest)
    return {
        "identity": digest,
        "recipe": identity(config, store.fingerprint, split, code=""),
        "name": name,
        "host": socket.gethostname(),
        "data": {
            "name": store.path.stem,
            "path": str(store.path.resolve()),
            "fingerprint": store.fingerprint,
            "patients": len(set(store.patients)),
            "slices": int(store.shape[0]),
        },
        "split": {
            "name": split.name,
            "sha256": split.sha256,
            "leaky": split.leaky,
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "device": {"asked": device.requested, "got": device.resolved, "threads": device.threads},
        "label": run_label(job, name),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "overrides": list(job.overrides),
        "sweep": job.sweep,
        "job": job.number,
        "start": job.start,
        "tracking": tracking,
    }


def run_label(job: Job, name: str) -> str:
    """What MLflow calls the run: a job of a sweep by what was swept, as depth=3; a single run by what was typed, its experiment first.

    Of that, what makes its numbers, as far as LONGEST allows, and `name`; "": by `name` alone.
    """
    given = values_by_setting(job.overrides)
    if job.swept:
        return " ".join(
            f"{short_name(one, job.swept)}={value}"
            for one, value in given.items()
            if one in job.swept
        )
    typed = drop_non_identity(given)
    words = [
        f"{short_name(one, typed)}={typed[one]}"
        for one in sorted(typed, key=lambda one: one != "experiment")
    ]
    return f"{shorten(' '.join(words), LONGEST, placeholder=' ...')} {name}" if words else ""


def folder_name(config: TrainConfig, digest: str) -> str:
    """What the run folder of this identity is called, siblings aside."""
    return f"{config.model.name}-{digest[:10]}"
