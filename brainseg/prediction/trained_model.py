"""Checkpoints that are ready to segment, with network, channels, split and inference settings."""

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
    restore_config,
)
from brainseg.core.errors import check
from brainseg.data.dataset import MRIDataset
from brainseg.data.imageio.tiff import LARGEST
from brainseg.data.open import open_dataset
from brainseg.data.signatures import is_same_scan, is_scan_of, signature, signatures_of
from brainseg.data.split import PARTS, Split
from brainseg.data.store import SliceStore, Store
from brainseg.data.volume import CHANNELS, CLASSES
from brainseg.models import networks
from brainseg.prediction.training_file import training_file
from brainseg.runs import checkpoint
from brainseg.runs.find import CHECKPOINT_FORMS, resolve_checkpoint, suggest_path
from brainseg.runs.foreign_weights import match_weights
from brainseg.training import losses
from brainseg.weights import packaged_file

log = logging.getLogger("brainseg")

# Height and width of the public dataset, for weights that do not store their training size.
DEFAULT_IMAGE_SIZE = (256, 256)


@dataclass(frozen=True)
class TrainedModel:
    """The contents of a checkpoint.

    Weights without a stored config use `requested_data` and `requested_model`.
    """

    name: str
    stored: Mapping[str, Any]
    requested_data: DataConfig
    requested_model: ModelConfig
    # The file that the checkpoint was read from.
    path: Path = Path()

    @cached_property
    def config(self) -> TrainConfig | None:
        return restore_config(self.stored["config"]) if "config" in self.stored else None

    @cached_property
    def split(self) -> Split | None:
        """Return the split of the training, or None for weights that do not store one."""
        return Split.from_dict(self.stored["split"]) if "split" in self.stored else None

    @cached_property
    def training_file(self) -> Path | None:
        """Return the current path of the training data, or None if it is missing or unknown."""
        return (
            training_file(self.path, self.stored, self.config) if self.config is not None else None
        )

    @cached_property
    def signatures(self) -> Mapping[str, Any]:
        """Return the signatures of the training data's volumes, by patient.

        An older checkpoint does not store them. Then they are read from the data file.
        """
        if "signatures" in self.stored:
            return self.stored["signatures"]
        if self.training_file is None:
            return {}
        with Store(self.training_file) as store:
            return (
                signatures_of(store) if store.fingerprint == self.stored.get("fingerprint") else {}
            )

    def role(self, patient: str, store: SliceStore, has_masks: bool = True) -> str:
        """Return the role of a patient of `store` in the split: train, validation, test or unknown.

        A name alone gives no role, because other data may use it for another patient. One of the
        patient's volumes must be a volume of that patient in the training data. A scan that only
        the network's initial weights have seen counts, too. Pass `has_masks=False` if `store` has
        no real masks, so that only the images are compared.
        """
        if self.split is None:
            return "unknown"
        is_same = store.fingerprint == self.stored.get("fingerprint")
        trained_on = self.signatures.get(patient, ())
        volumes = [index for index, name in enumerate(store.patients) if name == patient]
        if not is_same and isinstance(trained_on, list):
            is_same = any(
                is_same_scan(str(stored_scan), signature(store, index), has_masks)
                for stored_scan in trained_on
                for index in volumes
            )
        role = self.split.role(patient) if is_same else "unknown"
        # The initial weights of a fine-tuned network may have seen the patient.
        earlier = [
            part
            for part, scans in (("train", "trained"), ("validation", "selected"))
            if any(is_scan_of(store, index, self._earlier_scans(scans)) for index in volumes)
        ]
        return min((role, *earlier), key=(*PARTS, "unknown").index)

    def _earlier_scans(self, name: str) -> list[str]:
        """Return the signatures, `trained` or `selected`, of the initial weights' scans."""
        scans = self.stored.get("initial", {}).get(name, [])
        return list(map(str, scans)) if isinstance(scans, list) else []

    @property
    def is_leaky(self) -> bool:
        """Return True if the network or its initial weights saw patients that the run held out."""
        initial_is_leaky = self.stored.get("initial", {}).get("leaky") is True
        return initial_is_leaky or (self.split is not None and self.split.leaky)

    @property
    def about(self) -> Mapping[str, str]:
        """Return what a network of the package says about itself, {} for the networks of users.

        The names are name, version, licence, trained_on and expected_dice.
        """
        is_packaged = self.path == packaged_file(self.path.stem)
        return self.stored.get("about", {}) if is_packaged else {}

    @property
    def inference(self) -> InferenceConfig:
        return self.config.inference if self.config else InferenceConfig()

    @property
    def data(self) -> DataConfig:
        """Return the data settings of the training, which determine the network's input."""
        return self.config.data if self.config else self.requested_data

    @property
    def channels(self) -> list[str]:
        """Return the sequences that the network's input consists of, in order."""
        return (
            [self.data.channel]
            if self.data.channel is not None
            else [str(name) for name in self.stored.get("channels", CHANNELS)]
        )

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.stored.get("classes", CLASSES)]

    @property
    def in_channels(self) -> int:
        """Return the number of channels of the network's input.

        The channels are the sequences of the slice and of its neighbours, slice by slice from the
        lowest.
        """
        return len(self.channels) * (2 * self.data.context + 1)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Return the height and width of the training images in pixels, or None if unknown."""
        size: Any = self.stored.get("image_size")
        is_valid = (
            isinstance(size, list)
            and len(size) == 2
            and all(isinstance(side, int) and 0 < side <= LARGEST for side in size)
        )
        return (size[0], size[1]) if is_valid else None

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the weights with their names and shapes."""
        # The digest covers the weights only, so that it is the same for equal weights in another
        # file.
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

    def dataset(self, store: SliceStore, patients: Sequence[str]) -> MRIDataset:
        """Return the slices of the patients, with the channels and the context of the network."""
        return open_dataset(store, self.data, patients)

    def model(self, dataset: MRIDataset) -> nn.Module:
        """Return the network with its weights, for the sequences and classes of `dataset`.

        Raises RequestError if the weights belong to another network, or if the data have other
        sequences or classes.
        """
        sequences = dataset.sequences
        trained_on = list(self.stored.get("channels", sequences))
        has_sequences = self.data.channel is not None or sequences == trained_on
        rule = (
            f"was trained on {', '.join(map(str, trained_on))}, "
            f"but the data have {', '.join(sequences)}"
        )
        remedy = "prepare the data with the checkpoint's sequences, in its order"
        check(has_sequences, "checkpoint", self.name, rule, remedy)
        data_classes = dataset.store.classes
        classes = list(self.stored.get("classes", data_classes))
        # With a single foreground class, a different name is no different class.
        has_classes = (
            classes == data_classes
            or networks.num_outputs(classes) == networks.num_outputs(data_classes) == 1
        )
        rule = (
            f"segments {', '.join(map(str, classes))}, but the data have {', '.join(data_classes)}"
        )
        check(has_classes, "checkpoint", self.name, rule, "use data with its classes")
        return self._build(dataset.channels, dataset.size, classes)

    def network(self) -> nn.Module:
        """Return the network with its weights, in float32, on the CPU and in eval mode.

        Unlike `model`, this needs no data. Raises RequestError.
        """
        size = self.image_size or DEFAULT_IMAGE_SIZE
        return self._build(self.in_channels, size, self.classes).eval()

    def _build(self, in_channels: int, size: tuple[int, int], classes: Sequence[str]) -> nn.Module:
        settings = self.config.model if self.config else self.requested_model
        model = networks.build_network(settings, in_channels, networks.num_outputs(classes), size)
        weights, prefix, unused = match_weights(
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
        if unused:
            log.warning(
                "checkpoint:   %s: %d tensors are not of the network and left out: %s",
                self.name,
                len(unused),
                ", ".join(unused[:3]),
            )
        # `match_weights` has already compared the names.
        model.load_state_dict(weights, strict=False)
        return model


def load_model(name: str, data: DataConfig, model: ModelConfig) -> TrainedModel:
    """Read a checkpoint by path, run folder, runs:/ID, models:/NAME@ALIAS or a name in the package.

    `data` and `model` apply to weights without a stored config. Raises RequestError.
    """
    path = resolve_checkpoint(name)
    return TrainedModel(name, checkpoint.load_weights(path), data, model, path)


def load_members(names: Sequence[str], data: DataConfig, model: ModelConfig) -> list[TrainedModel]:
    """Read the checkpoints of an ensemble, or a single checkpoint.

    `data` and `model` apply to weights without a stored config. If all checkpoints store a config,
    a request for another `data.channel` or `data.context` is refused, because it would have no
    effect. Raises RequestError.
    """
    members = [load_model(name, data, model) for name in names]
    configs = {member.name: member.config for member in members if member.config is not None}
    for name, config in configs.items() if len(configs) == len(members) else ():
        for setting in ("channel", "context"):
            requested, trained, default = (
                getattr(source, setting) for source in (data, config.data, DataConfig())
            )
            rule = f"{name} was trained with {trained}"
            check(
                requested in (trained, default), f"data.{setting}", requested, rule, "leave it out"
            )
    return members


def load_checkpoint(name: str) -> TrainedModel:
    """Read a checkpoint of a run by path, run folder, runs:/ID or models:/NAME@ALIAS, or "lgg".

    "lgg" is the trained network of the package (`brainseg/weights/lgg.md`). The result is an
    argument for `brainseg.segment`. Its `network()` returns the network in eval mode. Its
    `channels`, `data.context`, `classes`, `inference` and `split` describe the training data and
    the interpretation of the output. Raises RequestError if there is no such checkpoint, and
    DataError if it is damaged.
    """
    return load_model(name, DataConfig(), UNetConfig())


def inference_of(members: Sequence[TrainedModel], override: InferenceOverride) -> InferenceConfig:
    """Return the members' inference settings with the overrides of the request.

    Raises RequestError if the resulting settings of the members differ.
    """
    changes = {
        name: value for name, value in dataclasses.asdict(override).items() if value is not None
    }
    settings = [dataclasses.replace(member.inference, **changes) for member in members]
    first = settings[0]
    volume = override.min_volume
    has_effect = volume is None or all(each.components == "min_volume" for each in settings)
    rule = f"has no effect under inference.components={first.components}"
    remedy = "add inference.components=min_volume"
    check(has_effect, "inference.min_volume", volume, rule, remedy)
    is_same = all(each == first for each in settings)
    rule = "the checkpoints were selected under different settings"
    check(is_same, "inference", "null", rule, "set inference.* for all checkpoints")
    return first


def short_name(name: str) -> str:
    """Return a checkpoint's name for a title: the name of its run folder if it has one."""
    # The absolute path has a name even if `name` is ".".
    path = Path(os.path.abspath(name))
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def check_checkpoint_exists(name: str) -> None:
    """Raise RequestError unless `name` is a checkpoint.

    It may be a checkpoint file, a run folder with best.pt, or a network of the package. The names
    runs:/ID and models:/NAME@ALIAS pass. They are looked up when the checkpoint is loaded.
    """
    exists = name.startswith(("runs:/", "models:/")) or resolve_checkpoint(name).is_file()
    check(exists, "checkpoint", name, "no such file", suggest_path(Path(name)) or CHECKPOINT_FORMS)


def patient_role(
    patient: str, members: Sequence[TrainedModel], store: SliceStore, has_masks: bool = True
) -> str:
    """Return the role of a patient of `store` in the members' splits.

    If the members' roles differ, train comes before validation, validation before test, and test
    before unknown. For `has_masks`, see `TrainedModel.role`.
    """
    # The order of PARTS is that of the precedence.
    roles = {member.role(patient, store, has_masks) for member in members}
    return next(role for role in (*PARTS, "unknown") if role in roles)


def leaking_members(
    patient: str, members: Sequence[TrainedModel], store: SliceStore | None = None
) -> list[str]:
    """Return the members that used a patient for training or selection, if others did not.

    Without `store`, the patient is known to belong to the training data, and its name gives the
    role.
    """
    roles = {member.name: _role(patient, member, store) for member in members}
    return (
        [name for name, role in roles.items() if role in ("train", "validation")]
        if len(set(roles.values())) > 1
        else []
    )


def _role(patient: str, member: TrainedModel, store: SliceStore | None) -> str:
    if store is not None:
        return member.role(patient, store)
    return member.split.role(patient) if member.split else "unknown"
