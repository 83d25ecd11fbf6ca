"""A model over whole patients: the one loop behind validation, test and `brainseg.evaluate`."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from brainseg.config import InferenceConfig
from brainseg.data.dataset import MRIDataset
from brainseg.device import Device
from brainseg.evaluation.inference import keep_components, predict_volume, to_mask
from brainseg.evaluation.metrics import PatientScore, score_patient

Criterion = Callable[[Tensor, Tensor], Tensor]


class PatientResult(NamedTuple):
    score: PatientScore
    prediction: np.ndarray  # uint8 (S, H, W)
    truth: np.ndarray  # uint8 (S, H, W)
    probability: (
        np.ndarray
    )  # float32 (S, K, H, W), before the threshold and the choice of components


def evaluate(
    model: nn.Module,
    dataset: MRIDataset,
    inference: InferenceConfig,
    device: Device,
    batch_size: int,
    criterion: Criterion | None = None,
    others: Sequence[tuple[nn.Module, MRIDataset]] = (),
) -> Iterator[PatientResult]:
    """Score `model` on each volume of `dataset`, one after the other; a volume never shares a batch with another.

    So a patient's score depends on that patient alone. `criterion` is taken over the volume's logits (S, K, H, W) in
    float32. `others` join the model in an ensemble, each with its own view of the same patients: the mean of all probabilities.
    Yields one volume at a time: whoever wants the masks keeps them.
    """
    for volume in dataset.volumes:
        positions = dataset.of_volume(volume)
        masks: list[Tensor] = []
        batches = _batches(dataset, positions, batch_size, device, masks)
        probability, logits = predict_volume(model, batches, inference, device.autocast)
        for other, view in others:
            further = _batches(view, view.of_volume(volume), batch_size, device, [])
            probability = (
                probability + predict_volume(other, further, inference, device.autocast)[0]
            )
        probability = probability / (1 + len(others))
        mask = torch.cat(masks)
        prediction = keep_components(to_mask(probability, inference), inference)
        loss = float(criterion(logits, mask)) if criterion is not None else float("nan")
        spacing = dataset.store.spacing[volume].tolist() if dataset.in_mm else None
        truth = mask[:, 0].numpy()
        score = score_patient(
            dataset.store.volumes[volume],
            prediction,
            truth,
            spacing,
            loss,
            classes=dataset.store.classes,
        )
        yield PatientResult(score, prediction, truth, probability.numpy())


def _batches(
    dataset: MRIDataset, positions: np.ndarray, batch_size: int, device: Device, masks: list[Tensor]
) -> Iterator[Tensor]:
    """The images of one volume in slice order, on the device; their masks are put aside on the CPU."""
    for start in range(0, len(positions), batch_size):
        batch = dataset.gather(positions[start : start + batch_size], device.torch)
        masks.append(batch.mask.cpu())
        yield device.format(batch.image)
