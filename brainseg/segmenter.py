"""A checkpoint, or several, on volumes that nobody prepared: the core of `brainseg.predict` and of `brainseg.segment`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from brainseg import build
from brainseg.config import DeviceConfig, InferenceConfig, InferenceOverride
from brainseg.data.dataset import MRIDataset
from brainseg.data.memory import MemoryStore
from brainseg.data.reader import Scan
from brainseg.data.studies.study import check_sequences, compose
from brainseg.device import Device, choose
from brainseg.errors import DataError, check
from brainseg.trained import Trained, inference_of, load_checkpoint
from brainseg.training.evaluation import Evaluated, evaluate
from brainseg.training.inference import check_components, check_threshold


class Segmentation(NamedTuple):
    mask: np.ndarray  # uint8 (S, H, W), class index
    probability: np.ndarray  # float32 (S, K, H, W); K = 1: of tumour, else of each class


class Segmenter:
    """Networks that are placed once for each size of image; one volume after the other goes through what evaluates patients, too."""

    def __init__(self, members: Sequence[Trained], inference: InferenceConfig, device: Device, batch_size: int = 8) -> None:
        """Raises RequestError for an ensemble whose members want different channels, or a threshold that decides nothing."""
        self.members, self.inference, self.device, self.batch_size = members, inference, device, batch_size
        self.classes = members[0].classes
        whole = [member.channels for member in members if member.data.volume is None]
        same = all(channels == whole[0] for channels in whole)
        check(same, "checkpoint", f"{len(members)} of them", "their networks take different channels", "predict with each by itself")
        self.channels = whole[0] if whole else list(dict.fromkeys(name for member in members for name in member.channels))
        for member in members:
            known = set(member.channels) <= set(self.channels)
            check(known, "checkpoint", member.name, f"takes {', '.join(member.channels)}; the others {', '.join(self.channels)}")
        check_threshold(inference, self.classes)
        check_components(inference)
        self._placed: dict[tuple[int, int], list[nn.Module]] = {}
        for member in members:
            member.network()  # weights that do not fit are refused here, not at the first volume

    def __call__(self, store: MemoryStore, scored: bool = False) -> Evaluated:
        """Probability and mask of the volume; `scored`: its masks are the truth, so that score and loss mean something."""
        (model, dataset), *others = self._models(store)
        criterion = self.members[0].criterion() if scored and not others else None  # a mean of probabilities has no logits
        (one,) = evaluate(model, dataset, self.inference, self.device, self.batch_size, criterion, others)
        return one

    def _models(self, store: MemoryStore) -> list[tuple[nn.Module, MRIDataset]]:
        """Each member's network with the volume as it sees it."""
        datasets = [member.dataset(store, store.patients) for member in self.members]
        size = datasets[0].size
        if size not in self._placed:
            made = [member.model(dataset) for member, dataset in zip(self.members, datasets, strict=True)]
            for member, model in zip(self.members, made, strict=True):
                if fault := build.size_fault(model, member.in_channels, size):
                    raise DataError(f"{store.volumes[0]}: {member.name} takes no images of {size[0]}x{size[1]} pixels ({fault})")
            self._placed = {size: [self.device.place(model) for model in made]}
        return list(zip(self._placed[size], datasets, strict=True))


def segment(
    checkpoint: str | Trained | Sequence[str | Trained],
    images: np.ndarray | Mapping[str, np.ndarray],
    device: DeviceConfig | None = None,
    inference: InferenceConfig | None = None,
    batch_size: int = 8,
) -> Segmentation:
    """Segment one volume.

    Args:
        checkpoint: a path, a run folder, runs:/ID or models:/NAME@ALIAS, or what `load_checkpoint` gives; several are an ensemble.
        images: axial slices from bottom to top, face up: (S, C, H, W) with the checkpoint's channels, or (S, H, W) by the name of
            the sequence; FLAIR stands in for a missing one. uint8, or any real type, which is stretched as `prepare` does it.
        device: None: the best that is there.
        inference: None: as the checkpoint was selected.

    Raises RequestError for sequences or networks that do not fit, DataError for values that are not finite.
    """
    names = [checkpoint] if isinstance(checkpoint, str | Trained) else list(checkpoint)
    members = [load_checkpoint(name) if isinstance(name, str) else name for name in names]
    segmenter = Segmenter(members, inference or inference_of(members, InferenceOverride()), choose(device or DeviceConfig()), batch_size)
    channels = segmenter.channels
    if not isinstance(images, Mapping):
        fits = images.ndim == 4 and images.shape[1] == len(channels)
        check(fits, "images", images.shape, f"must be (slices, {len(channels)} channels, height, width): {', '.join(channels)}")
        images = {name: images[:, index] for index, name in enumerate(channels)}
    check_sequences(list(images), channels)
    shapes = {np.shape(sequence) for sequence in images.values()}
    alike = len(shapes) == 1 and len(next(iter(shapes))) == 3
    check(alike, "images", ", ".join(map(str, shapes)), "must be (slices, height, width), all of one shape")
    store = MemoryStore("volume", Scan(compose(images, channels), None), channels, segmenter.classes)
    one = segmenter(store)
    return Segmentation(one.prediction, one.probability)
