"""The identity of a run: the settings that differ from the defaults, the data, split and code."""

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any

from brainseg.config import NOT_IDENTITY, TrainConfig
from brainseg.data.split import Split
from brainseg.runs.code_version import code_version

# Runs that differ in these settings alone are repeats of one configuration, and a sweep over only
# these chooses no setting.
REPETITION_SETTINGS = ("seed", "split.fold")

# Increase this number when the same settings come to produce other results.
IDENTITY_VERSION = 1


def compute_identity(
    config: TrainConfig, fingerprint: str, split: Split, code: str | None = None, initial: str = ""
) -> str:
    """Return the hex digest of all that determines a run's results: settings, data, split, code.

    Only settings that differ from their defaults count, so that a setting which is added later, at
    its default, changes no identity. `code` replaces the hash of the sources. With code="" two runs
    with the same settings, data and split are equal under any code. `initial` is the hash of the
    initial weights, which counts instead of their name.
    """
    code = code_version().sha256 if code is None else code
    content = [
        IDENTITY_VERSION,
        sorted(drop_non_identity(non_default_settings(config), ("initial",)).items()),
        fingerprint,
        split.sha256,
        code,
        *([initial] if initial else []),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def non_default_settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings that differ from the defaults, by dotted name.

    The defaults of a group are those of its selected choice, and the name of that choice is always
    included.
    """
    settings: dict[str, Any] = {}
    default = type(config)()
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            settings |= non_default_settings(value, f"{prefix}{field.name}.")
        elif field.name == "name" or value != getattr(default, field.name):
            settings[f"{prefix}{field.name}"] = value
    return settings


def training_budget(config: TrainConfig) -> tuple[str, float]:
    """Return the setting that limits a run, and its value.

    The setting is max_steps or max_minutes if it is set, else epochs.
    """
    if config.max_steps is not None:
        return "max_steps", config.max_steps
    if config.max_minutes is not None:
        return "max_minutes", config.max_minutes
    return "epochs", config.epochs


def drop_non_identity(settings: dict[str, Any], ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the settings without those that change no result of a run, and without `ignored`."""
    # A name also covers the settings below it, as `tracking` covers tracking.uri.
    dropped = (*NOT_IDENTITY, *ignored)
    return {
        name: value
        for name, value in settings.items()
        if not any(name == group or name.startswith(f"{group}.") for group in dropped)
    }
