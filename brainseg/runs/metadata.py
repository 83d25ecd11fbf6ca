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

# Characters of the typed settings in a label: MLflow shows the name in a table column.
LONGEST_LABEL = 60


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
        "tracking": tracking,
        **({"initial": initial} if initial else {}),
    }


def run_label(job: Job, name: str) -> str:
    """Return the run's display name in MLflow, or "" if MLflow shall use `name` alone.

    A job of a sweep is named after the swept settings, such as depth=3. A single run is named after
    the typed settings that count for its identity, with the experiment first, shortened to LONGEST
    characters and followed by `name`.
    """
    values = values_by_setting(job.overrides)
    if job.swept:
        return " ".join(
            f"{short_name(setting, job.swept)}={value}"
            for setting, value in values.items()
            if setting in job.swept
        )
    typed = drop_non_identity(values)
    words = [
        f"{short_name(setting, typed)}={typed[setting]}"
        for setting in sorted(typed, key=lambda setting: setting != "experiment")
    ]
    return f"{shorten(' '.join(words), LONGEST_LABEL, placeholder=' ...')} {name}" if words else ""


def folder_name(config: TrainConfig, digest: str) -> str:
    """Return the name of the run folder with this identity, before a sibling number is added."""
    return f"{config.model.name}-{digest[:10]}"
