"""A checkpoint made ready to segment: its network, its channels, its split and its inference settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from brainseg import build
from brainseg.config import DataConfig, InferenceConfig, ModelConfig, TrainConfig, restore
from brainseg.data.dataset import MRIDataset
from brainseg.data.split import PARTS, Split
from brainseg.data.store import Store
from brainseg.errors import check
from brainseg.records import checkpoint

NAMES = "give a checkpoint, a run folder, runs:/ID or models:/NAME@ALIAS"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds; weights that carry no config take `data` and `model` from the request."""

    name: str
    stored: Mapping[str, Any]
    requested_data: DataConfig
    requested_model: ModelConfig

    @cached_property
    def config(self) -> TrainConfig | None:
        return restore(self.stored["config"]) if "config" in self.stored else None

    @cached_property
    def split(self) -> Split | None:
        """Who was trained on, selected on and held out; None for weights that do not say."""
        return Split.from_dict(self.stored["split"]) if "split" in self.stored else None

    @property
    def inference(self) -> InferenceConfig:
        return self.config.inference if self.config else InferenceConfig()

    def criterion(self) -> nn.Module | None:
        return build.loss(self.config.loss, build.outputs(self.stored.get("classes", ()))) if self.config else None

    def dataset(self, store: Store, patients: Sequence[str]) -> MRIDataset:
        """The slices as the network saw them: its own channels and context."""
        data = self.config.data if self.config else self.requested_data
        return MRIDataset(store, patients=patients, volume=data.volume, context=data.context)

    def model(self, dataset: MRIDataset) -> nn.Module:
        """The network with its weights. Raises RequestError if they are those of another network."""
        settings = self.config.model if self.config else self.requested_model
        there, own = dataset.store.classes, list(self.stored.get("classes", dataset.store.classes))
        same = own == there or build.outputs(own) == build.outputs(there) == 1  # one class may have two names
        rule = f"segments {', '.join(map(str, own))}; the data have {', '.join(there)}"
        check(same, "checkpoint", self.name, rule, "use data with its classes")
        model = build.model(settings, dataset.channels, build.outputs(own), dataset.size)
        try:
            model.load_state_dict(self.stored["model"])
        except RuntimeError as error:  # torch lists every key that does not fit, over many lines
            check(False, "checkpoint", self.name, f"its weights are not those of model={dataclasses.asdict(settings)}",
                  f"set model.* as it was trained ({str(error).splitlines()[1].strip()[:160]})")
        return model


def load(name: str, data: DataConfig, model: ModelConfig) -> Trained:
    """Read a checkpoint by path, run folder, runs:/ID or models:/NAME@ALIAS. Raises RequestError."""
    return Trained(name, checkpoint.load_weights(path_of(name)), data, model)


def path_of(name: str) -> Path:
    """The file that a checkpoint's name means."""
    if name.startswith(("runs:/", "models:/")):
        from brainseg.records.tracking import checkpoint_of

        return checkpoint_of(name)
    path = Path(name)
    return path / "checkpoints" / "best.pt" if (path / "run.json").is_file() else path


def check_name(name: str) -> None:
    """Refuse a file that is not there, before anything is created; what is in MLflow shows when it is loaded."""
    found = name.startswith(("runs:/", "models:/")) or path_of(name).is_file()
    check(found, "checkpoint", name, "no such file", NAMES)


def role_of(patient: str, members: Sequence[Trained]) -> str:
    """How close the members came to a patient: train before validation before test before unknown; a leaky ensemble hides nothing."""
    roles = {member.split.role(patient) if member.split else "unknown" for member in members}
    return next(role for role in (*PARTS, "unknown") if role in roles)


def saw(patient: str, members: Sequence[Trained]) -> list[str]:
    """The members that trained on a patient or selected on it, when others held it out."""
    roles = {member.name: member.split.role(patient) if member.split else "unknown" for member in members}
    return [name for name, role in roles.items() if role in ("train", "validation")] if len(set(roles.values())) > 1 else []
