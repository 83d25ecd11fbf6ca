"""A checkpoint, or several, on volumes that nobody prepared: the core of `brainseg.predict` and of `brainseg.segment`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from brainseg.config import DeviceConfig, InferenceConfig, InferenceOverride
from brainseg.core.errors import DataError, check
from brainseg.data.cases.in_memory import Images, case_in_memory
from brainseg.data.cases.study import ImageCase
from brainseg.data.dataset import MRIDataset
from brainseg.data.memory_store import MemoryStore
from brainseg.device import Device, choose_device
from brainseg.evaluation.evaluate import PatientResult, evaluate
from brainseg.evaluation.inference import check_components, check_threshold
from brainseg.models import networks
from brainseg.prediction.trained_model import TrainedModel, inference_of, load_checkpoint


class Segmentation(NamedTuple):
    """A mask and a probability along the axes of what was segmented.

    Of arrays, TIFF and folders of slices: axial slices. Of images with a position in the patient, such as
    NIfTI: the image's own axes (i, j, k), so that both have the image's affine.
    """

    mask: np.ndarray  # uint8 (S, H, W) or (i, j, k), class index
    # float32 (S, K, H, W) or (i, j, k, K); K = 1: of tumour, else of each class
    probability: np.ndarray


class Segmenter:
    """Networks that are placed once for each size of image; one volume after the other goes through what evaluates patients, too."""

    def __init__(
        self,
        members: Sequence[TrainedModel],
        inference: InferenceConfig,
        device: Device,
        batch_size: int = 8,
    ) -> None:
        """Raises RequestError for an ensemble whose members want different channels, or a threshold that decides nothing."""
        self.members, self.inference, self.device, self.batch_size = (
            members,
            inference,
            device,
            batch_size,
        )
        self.classes = members[0].classes
        whole = [member.channels for member in members if member.data.volume is None]
        same = all(channels == whole[0] for channels in whole)
        check(
            same,
            "checkpoint",
            f"{len(members)} of them",
            "their networks take different channels",
            "predict with each by itself",
        )
        self.channels = (
            whole[0]
            if whole
            else list(dict.fromkeys(name for member in members for name in member.channels))
        )
        for member in members:
            known = set(member.channels) <= set(self.channels)
            check(
                known,
                "checkpoint",
                member.name,
                f"takes {', '.join(member.channels)}; the others {', '.join(self.channels)}",
            )
        check_threshold(inference, self.classes)
        check_components(inference)
        self._placed: dict[tuple[int, int], list[nn.Module]] = {}
        for member in members:
            member.network()  # weights that do not fit are refused here, not at the first volume

    def __call__(self, store: MemoryStore, scored: bool = False) -> PatientResult:
        """Probability and mask of the volume; `scored`: its masks are the truth, so that score and loss mean something."""
        (model, dataset), *others = self._models(store)
        criterion = (
            self.members[0].criterion() if scored and not others else None
        )  # a mean of probabilities has no logits
        (one,) = evaluate(
            model, dataset, self.inference, self.device, self.batch_size, criterion, others
        )
        return one

    def _models(self, store: MemoryStore) -> list[tuple[nn.Module, MRIDataset]]:
        """Each member's network with the volume as it sees it."""
        datasets = [member.dataset(store, store.patients) for member in self.members]
        size = datasets[0].size
        if size not in self._placed:
            made = [
                member.model(dataset)
                for member, dataset in zip(self.members, datasets, strict=True)
            ]
            for member, model in zip(self.members, made, strict=True):
                if fault := networks.unsupported_size_reason(model, member.in_channels, size):
                    raise DataError(
                        f"{store.volumes[0]}: {member.name} takes no images of {size[0]}x{size[1]} pixels ({fault})"
                    )
            self._placed = {size: [self.device.place(model) for model in made]}
        return list(zip(self._placed[size], datasets, strict=True))


def segment(
    checkpoint: str | TrainedModel | Sequence[str | TrainedModel],
    images: Images,
    device: DeviceConfig | None = None,
    inference: InferenceConfig | None = None,
    batch_size: int = 8,
) -> Segmentation:
    """Segment one volume.

    Args:
        checkpoint: a path, a run folder, runs:/ID or models:/NAME@ALIAS, or what `load_checkpoint`
            returns; several are an ensemble.
        images: what `predict` takes as input, a path or a list of them; or a nibabel image; or axial
            slices from bottom to top, face up, as an array or tensor (S, C, H, W) with the checkpoint's
            channels. A list or a mapping by name holds one path, nibabel image or array (S, H, W) for
            each sequence, a list in the checkpoint's order with None for a missing one. FLAIR stands in
            for a missing sequence. Arrays of uint8 are taken as they are, other real types are scaled as
            `prepare` does it.
        device: None: the best that there is.
        inference: None: as the checkpoint was selected.

    Raises RequestError for images, sequences or networks that do not fit, and DataError for values that
    are not finite, or for a file that changes while it is read.
    """
    names = [checkpoint] if isinstance(checkpoint, str | TrainedModel) else list(checkpoint)
    members = [load_checkpoint(name) if isinstance(name, str) else name for name in names]
    inference = inference or inference_of(members, InferenceOverride())
    segmenter = Segmenter(members, inference, choose_device(device or DeviceConfig()), batch_size)
    study = case_in_memory(images, segmenter.channels)
    scan = study.read()
    evaluated = segmenter(MemoryStore(study.name, scan, study.channels, segmenter.classes))
    mask, probability = evaluated.prediction, evaluated.probability
    if not isinstance(study, ImageCase):
        return Segmentation(mask, probability)
    outputs = [
        study.grid.from_axial(probability[:, output]) for output in range(probability.shape[1])
    ]
    return Segmentation(study.grid.from_axial(mask), np.stack(outputs, axis=-1))
