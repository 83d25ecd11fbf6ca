"""Segmentation of raw volumes by a checkpoint or an ensemble.

This is the core of `brainseg.predict` and of `brainseg.segment`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from brainseg.config import DeviceConfig, InferenceConfig, InferenceOverride
from brainseg.core.errors import DataError, check
from brainseg.data.cases.in_memory import Images, case_in_memory
from brainseg.data.cases.input_case import ImageCase
from brainseg.data.dataset import MRIDataset
from brainseg.data.memory_store import MemoryStore
from brainseg.device import Device, choose_device
from brainseg.evaluation.evaluate import PatientResult, evaluate
from brainseg.evaluation.inference import check_components, check_threshold
from brainseg.models import networks
from brainseg.models.folding import fold_batch_norm
from brainseg.prediction.trained_model import TrainedModel, inference_of, load_checkpoint


class Segmentation(NamedTuple):
    """A mask and a probability along the axes of the input.

    For arrays, TIFF and folders of slices, both consist of axial slices. Images with a position in
    the patient, such as NIfTI, keep their own axes (i, j, k), so that both have the image's affine.
    """

    # Class indices, uint8 (S, H, W) or (i, j, k).
    mask: np.ndarray
    # float32 (S, K, H, W) or (i, j, k, K). K = 1 is the probability of tumour. Otherwise, there is
    # a probability for each class.
    probability: np.ndarray


class Segmenter:
    """Networks on a device that segment volumes one after the other.

    The networks are moved to the device again only when the image size changes. The volumes go
    through the code that evaluates patients.
    """

    def __init__(
        self,
        members: Sequence[TrainedModel],
        inference: InferenceConfig,
        device: Device,
        batch_size: int = 8,
    ) -> None:
        """Check that the members and the inference settings fit together.

        Raises RequestError if the members of an ensemble need different channels, or if the
        threshold has no effect.
        """
        self.members, self.inference = members, inference
        self.device, self.batch_size = device, batch_size
        self.classes = members[0].classes
        # A member with `data.channel` needs a single sequence, which any order of channels has.
        channel_lists = [member.channels for member in members if member.data.channel is None]
        is_same = all(channels == channel_lists[0] for channels in channel_lists)
        number = f"{len(members)} of them"
        rule = "their networks take different channels"
        check(is_same, "checkpoint", number, rule, "predict with each checkpoint separately")
        self.channels = (
            channel_lists[0]
            if channel_lists
            else list(dict.fromkeys(name for member in members for name in member.channels))
        )
        for member in members:
            fits = set(member.channels) <= set(self.channels)
            rule = (
                f"takes {', '.join(member.channels)}, "
                f"but the other checkpoints take {', '.join(self.channels)}"
            )
            check(fits, "checkpoint", member.name, rule)
        check_threshold(inference, self.classes)
        check_components(inference)
        self._networks_by_size: dict[tuple[int, int], list[nn.Module]] = {}
        # The networks are built once here, so that weights that do not fit are refused now and not
        # at the first volume.
        for member in members:
            member.network()

    def __call__(self, store: MemoryStore, scored: bool = False) -> PatientResult:
        """Return the probability and the mask of a volume.

        If `scored` is True, the volume's masks are the truth, so that its score and its loss are
        valid.
        """
        (model, dataset), *ensemble = self._models(store)
        # An ensemble averages probabilities, so that it has no logits for a loss.
        criterion = self.members[0].criterion() if scored and not ensemble else None
        (result,) = evaluate(
            model, dataset, self.inference, self.device, self.batch_size, criterion, ensemble
        )
        return result

    def _models(self, store: MemoryStore) -> list[tuple[nn.Module, MRIDataset]]:
        """Return each member's network, and the volume with the channels that the member needs."""
        datasets = [member.dataset(store, store.patients) for member in self.members]
        size = datasets[0].size
        if size not in self._networks_by_size:
            models = [
                member.model(dataset)
                for member, dataset in zip(self.members, datasets, strict=True)
            ]
            for member, model in zip(self.members, models, strict=True):
                if fault := networks.unsupported_size_reason(model, member.in_channels, size):
                    raise DataError(
                        f"{store.volumes[0]}: {member.name} takes no images of "
                        f"{size[0]}x{size[1]} pixels ({fault})"
                    )
            # Only the networks of the last size are kept. They are folded here once, and not again
            # for each volume.
            folded = [fold_batch_norm(model) for model in models]
            self._networks_by_size = {size: [self.device.place(model) for model in folded]}
        return list(zip(self._networks_by_size[size], datasets, strict=True))


def segment(
    checkpoint: str | TrainedModel | Sequence[str | TrainedModel],
    images: Images,
    device: DeviceConfig | None = None,
    inference: InferenceConfig | None = None,
    batch_size: int = 8,
) -> Segmentation:
    """Segment one volume.

    Args:
        checkpoint: A path, a run folder, runs:/ID, models:/NAME@ALIAS, or a model that
            `load_checkpoint` returned. Several checkpoints form an ensemble.
        images: One of the following.

            - A path or a list of paths, as in the input of `predict`.
            - A nibabel image.
            - Axial slices from bottom to top, face up, as an array or tensor (S, C, H, W) with the
              checkpoint's channels.
            - A list, or a mapping by name, with one path, nibabel image or array (S, H, W) for each
              sequence. A list has the checkpoint's order, with None for a missing sequence.

            FLAIR replaces a missing sequence. Arrays of uint8 are used unchanged. Other real types
            are scaled as in `prepare`.
        device: The device settings. None chooses the best device of the machine.
        inference: The inference settings. None uses those with which the checkpoint was selected.
        batch_size: The number of slices per forward pass.

    Raises RequestError for images, sequences or networks that do not fit, and DataError for values
    that are not finite, or for a file that changes while it is read.
    """
    names = [checkpoint] if isinstance(checkpoint, str | TrainedModel) else list(checkpoint)
    members = [load_checkpoint(name) if isinstance(name, str) else name for name in names]
    inference = inference or inference_of(members, InferenceOverride())
    segmenter = Segmenter(members, inference, choose_device(device or DeviceConfig()), batch_size)
    case = case_in_memory(images, segmenter.channels)
    scan = case.read()
    evaluated = segmenter(MemoryStore(case.name, scan, case.channels, segmenter.classes))
    mask, probability = evaluated.prediction, evaluated.probability
    if not isinstance(case, ImageCase):
        return Segmentation(mask, probability)
    outputs = [
        case.grid.from_axial(probability[:, output]) for output in range(probability.shape[1])
    ]
    return Segmentation(case.grid.from_axial(mask), np.stack(outputs, axis=-1))
