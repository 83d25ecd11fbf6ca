"""A checkpoint made ready to segment: its network, its channels, its split and its inference settings."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brainseg.config import (
    DataConfig,
    InferenceConfig,
    InferenceOverride,
    ModelConfig,
    TrainConfig,
    UNetConfig,
    restore,
)
from brainseg.core.errors import check
from brainseg.data.dataset import MRIDataset
from brainseg.data.imageio.tiff import LARGEST
from brainseg.data.signatures import is_same_scan, signature, signatures_of
from brainseg.data.split import PARTS, Split
from brainseg.data.store import Store
from brainseg.data.volume import CHANNELS, CLASSES
from brainseg.models import networks
from brainseg.prediction.training_data import training_file
from brainseg.runs import checkpoint
from brainseg.runs.find import nearest
from brainseg.runs.foreign_weights import match_weights
from brainseg.training import losses

log = logging.getLogger("brainseg")

DEFAULT_IMAGE_SIZE = (
    256,
    256,
)  # height and width of the public set, for weights that do not say what they were trained on
NAMES = "give a checkpoint, a run folder, runs:/ID or models:/NAME@ALIAS"


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint holds; weights that carry no config take `data` and `model` from the request."""

    name: str
    stored: Mapping[str, Any]
    requested_data: DataConfig
    requested_model: ModelConfig
    path: Path = Path()  # the file that was read

    @cached_property
    def config(self) -> TrainConfig | None:
        return restore(self.stored["config"]) if "config" in self.stored else None

    @cached_property
    def split(self) -> Split | None:
        """Who was trained on, selected on and held out; None for weights that do not say."""
        return Split.from_dict(self.stored["split"]) if "split" in self.stored else None

    @cached_property
    def training_file(self) -> Path | None:
        """The file of the training data, where it lies today; None where it is not there or not known."""
        return (
            training_file(self.path, self.stored, self.config) if self.config is not None else None
        )

    @cached_property
    def signatures(self) -> Mapping[str, Any]:
        """The signatures of the training data's volumes, by patient; of an older checkpoint read from the data file."""
        if "signatures" in self.stored:
            return self.stored["signatures"]
        if self.training_file is None:
            return {}
        with Store(self.training_file) as store:
            return (
                signatures_of(store) if store.fingerprint == self.stored.get("fingerprint") else {}
            )

    def role(self, patient: str, store: Store, has_masks: bool = True) -> str:
        """Return the role of a patient of `store` in the split: train, validation, test or unknown.

        A name alone gives no role, because other data may use it for another patient. One of the patient's
        volumes must be a volume of that patient in the training data. `has_masks=False` leaves the masks of
        `store` aside, which nobody has drawn.
        """
        if self.split is None:
            return "unknown"
        is_same = store.fingerprint == self.stored.get("fingerprint")
        trained_on = self.signatures.get(patient, ())
        if not is_same and isinstance(trained_on, list):
            scans = [
                signature(store, index)
                for index, name in enumerate(store.patients)
                if name == patient
            ]
            is_same = any(
                is_same_scan(str(its), scan, has_masks) for its in trained_on for scan in scans
            )
        return self.split.role(patient) if is_same else "unknown"

    @property
    def inference(self) -> InferenceConfig:
        return self.config.inference if self.config else InferenceConfig()

    @property
    def data(self) -> DataConfig:
        """What it saw of a slice: `volume` and `context`."""
        return self.config.data if self.config else self.requested_data

    @property
    def channels(self) -> list[str]:
        """The sequences that its input is made of, in order."""
        return (
            [self.data.volume]
            if self.data.volume is not None
            else [str(name) for name in self.stored.get("channels", CHANNELS)]
        )

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.stored.get("classes", CLASSES)]

    @property
    def in_channels(self) -> int:
        """Channels of the network's input: the sequences of the slice and of its neighbours, slice by slice from the lowest."""
        return len(self.channels) * (2 * self.data.context + 1)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that it was trained on, in pixels; None for weights that do not say."""
        size: Any = self.stored.get("image_size")
        sound = (
            isinstance(size, list)
            and len(size) == 2
            and all(isinstance(side, int) and 0 < side <= LARGEST for side in size)
        )
        return (size[0], size[1]) if sound else None

    @cached_property
    def sha256(self) -> str:
        """Of the weights, by name."""
        digest = hashlib.sha256()
        for name, tensor in self.stored["model"].items():
            digest.update(
                f"{name} {tuple(tensor.shape)} ".encode()
                + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    def criterion(self) -> nn.Module | None:
        return (
            losses.build_loss(
                self.config.loss, networks.num_outputs(self.stored.get("classes", ()))
            )
            if self.config
            else None
        )

    def dataset(self, store: Store, patients: Sequence[str]) -> MRIDataset:
        """The slices as the network saw them: its own channels and context."""
        return MRIDataset(
            store, patients=patients, volume=self.data.volume, context=self.data.context
        )

    def model(self, dataset: MRIDataset) -> nn.Module:
        """The network with its weights. Raises RequestError if they are those of another network, or the data have other sequences."""
        sequences, trained_on = (
            dataset.sequences,
            list(self.stored.get("channels", dataset.sequences)),
        )
        fit = self.data.volume is not None or sequences == trained_on
        check(
            fit,
            "checkpoint",
            self.name,
            f"was trained on {', '.join(map(str, trained_on))}; the data have {', '.join(sequences)}",
            "prepare the data with its sequences, in its order",
        )
        there, own = dataset.store.classes, list(self.stored.get("classes", dataset.store.classes))
        same = (
            own == there or networks.num_outputs(own) == networks.num_outputs(there) == 1
        )  # one class may have two names
        rule = f"segments {', '.join(map(str, own))}; the data have {', '.join(there)}"
        check(same, "checkpoint", self.name, rule, "use data with its classes")
        return self._built(dataset.channels, dataset.size, own)

    def network(self) -> nn.Module:
        """The network with its weights, float32, on the CPU and in eval mode, where no data are at hand. Raises RequestError."""
        return self._built(
            self.in_channels, self.image_size or DEFAULT_IMAGE_SIZE, self.classes
        ).eval()

    def _built(self, in_channels: int, size: tuple[int, int], classes: Sequence[str]) -> nn.Module:
        settings = self.config.model if self.config else self.requested_model
        model = networks.build_network(settings, in_channels, networks.num_outputs(classes), size)
        weights, prefix, others = match_weights(
            self.stored["model"],
            model.state_dict(),
            self.name,
            f"model={dataclasses.asdict(settings)}",
        )
        if prefix:
            log.info(
                "checkpoint:   %s: the prefix %s is removed from the names of its weights",
                self.name,
                prefix,
            )
        if others:
            log.warning(
                "checkpoint:   %s: %d tensors are not of the network and left out: %s",
                self.name,
                len(others),
                ", ".join(others[:3]),
            )
        model.load_state_dict(weights, strict=False)  # `match_weights` has compared the names
        return model


def load_model(name: str, data: DataConfig, model: ModelConfig) -> TrainedModel:
    """Read a checkpoint by path, run folder, runs:/ID or models:/NAME@ALIAS. Raises RequestError."""
    path = resolve_checkpoint(name)
    return TrainedModel(name, checkpoint.load_weights(path), data, model, path)


def load_members(names: Sequence[str], data: DataConfig, model: ModelConfig) -> list[TrainedModel]:
    """Read the checkpoints of an ensemble, or the one. `data` and `model` are for weights that carry no config.

    Where all carry one, a request for another `data.volume` or `data.context` is refused: it would do nothing. Raises RequestError.
    """
    members = [load_model(name, data, model) for name in names]
    configs = {member.name: member.config for member in members if member.config is not None}
    for name, own in configs.items() if len(configs) == len(members) else ():
        for setting in ("volume", "context"):
            asked, its, default = (getattr(one, setting) for one in (data, own.data, DataConfig()))
            check(
                asked in (its, default),
                f"data.{setting}",
                asked,
                f"{name} was trained with {its}",
                "leave it out",
            )
    return members


def load_checkpoint(name: str) -> TrainedModel:
    """A checkpoint of a run, by path, run folder, runs:/ID or models:/NAME@ALIAS: what `brainseg.segment` takes.

    `network()` is its network in eval mode; `channels`, `data.context`, `classes`, `inference` and `split` say what it was trained
    on and how its output is read. Raises RequestError (no such checkpoint), DataError (damaged).
    """
    return load_model(name, DataConfig(), UNetConfig())


def inference_of(members: Sequence[TrainedModel], asked: InferenceOverride) -> InferenceConfig:
    """The members' inference settings, with what the request says otherwise. Raises RequestError if they then differ."""
    given = {name: value for name, value in dataclasses.asdict(asked).items() if value is not None}
    ways = [dataclasses.replace(member.inference, **given) for member in members]
    counts = asked.min_volume is None or all(way.components == "min_volume" for way in ways)
    check(
        counts,
        "inference.min_volume",
        asked.min_volume,
        f"says nothing under inference.components={ways[0].components}",
        "add inference.components=min_volume",
    )
    same = all(way == ways[0] for way in ways)
    check(
        same,
        "inference",
        "null",
        "the checkpoints were selected under different settings",
        "set inference.* for all of them",
    )
    return ways[0]


def resolve_checkpoint(name: str) -> Path:
    """The file that a checkpoint's name means."""
    if name.startswith(("runs:/", "models:/")):
        from brainseg.tracking.lookup import checkpoint_of

        return checkpoint_of(name)
    path = Path(name)
    return path / "checkpoints" / "best.pt" if (path / "run.json").is_file() else path


def short_name(name: str) -> str:
    """A checkpoint's name for a title: that of its run's folder where it lies in one."""
    path = Path(os.path.abspath(name))  # "." has a name, too
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def check_checkpoint_exists(name: str) -> None:
    """Refuse a file that is not there, before anything is created; what is in MLflow shows when it is loaded."""
    found = name.startswith(("runs:/", "models:/")) or resolve_checkpoint(name).is_file()
    check(found, "checkpoint", name, "no such file", nearest(Path(name)) or NAMES)


def patient_role(
    patient: str, members: Sequence[TrainedModel], store: Store, has_masks: bool = True
) -> str:
    """Return how close the members came to a patient of `store`: train before validation before test before unknown.

    For `has_masks` see `Trained.role`.
    """
    roles = {member.role(patient, store, has_masks) for member in members}
    return next(role for role in (*PARTS, "unknown") if role in roles)


def members_that_saw(
    patient: str, members: Sequence[TrainedModel], store: Store | None = None
) -> list[str]:
    """Return the members that trained on a patient or selected on it, where others held the patient out.

    Without `store` the patient is known to be one of the training data, and its name gives the role.
    """
    roles = {member.name: _role(patient, member, store) for member in members}
    return (
        [name for name, role in roles.items() if role in ("train", "validation")]
        if len(set(roles.values())) > 1
        else []
    )


def _role(patient: str, member: TrainedModel, store: Store | None) -> str:
    if store is not None:
        return member.role(patient, store)
    return member.split.role(patient) if member.split else "unknown"
