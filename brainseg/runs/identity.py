"""What makes two runs the same run: the settings that differ from the defaults, the data, the split and the code."""

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any

from brainseg.config import NOT_IDENTITY, TrainConfig
from brainseg.data.split import Split
from brainseg.runs.code_version import code_version

IDENTITY_VERSION = 1  # raise when the same settings come to mean other numbers
EXTENDED = ("epochs", "max_minutes", "patience")  # what a resumed run may be given more of


def identity(config: TrainConfig, fingerprint: str, split: Split, code: str | None = None) -> str:
    """Hex digest of what makes a run's numbers: settings that differ from the defaults, data, split and code.

    Only differing settings, so that a setting added later, at its default, changes no identity. `code` replaces the hash of
    the sources: with "" runs of the same settings, data and split compare equal whatever the code.
    """
    code = code_version().sha256 if code is None else code
    content = [
        IDENTITY_VERSION,
        sorted(drop_non_identity(non_default_settings(config)).items()),
        fingerprint,
        split.sha256,
        code,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def non_default_settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings that differ from the defaults of the choice made, by dotted name; each choice's name is always among them."""
    found: dict[str, Any] = {}
    default = type(config)()
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= non_default_settings(value, f"{prefix}{field.name}.")
        elif field.name == "name" or value != getattr(default, field.name):
            found[f"{prefix}{field.name}"] = value
    return found


def training_budget(config: TrainConfig) -> tuple[str, float]:
    """What a run is counted in, epochs or max_minutes, and how many of them it is given."""
    return (
        ("epochs", config.epochs)
        if config.max_minutes is None
        else ("max_minutes", config.max_minutes)
    )


def drop_non_identity(settings: dict[str, Any], further: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings less those that change no number of a run, and less `further` ones."""
    aside = (*NOT_IDENTITY, *further)
    return {
        name: value
        for name, value in settings.items()
        if not any(name == one or name.startswith(f"{one}.") for one in aside)
    }
