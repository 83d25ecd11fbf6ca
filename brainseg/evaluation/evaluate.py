"""The loop over whole patients behind validation, test and `brainseg.evaluate`."""

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
from brainseg.models.folding import fold_batch_norm

Criterion = Callable[[Tensor, Tensor], Tensor]


class PatientResult(NamedTuple):
    """The scores, masks and probability of one volume."""

    score: PatientScore
    # uint8 (S, H, W)
    prediction: np.ndarray
    # uint8 (S, H, W)
    truth: np.ndarray
    # float32 (S, K, H, W), before the threshold and the choice of components
    probability: np.ndarray


def evaluate(
    model: nn.Module,
    dataset: MRIDataset,
    inference: InferenceConfig,
    device: Device,
    batch_size: int,
    criterion: Criterion | None = None,
    other_members: Sequence[tuple[nn.Module, MRIDataset]] = (),
    with_geometry: bool = True,
) -> Iterator[PatientResult]:
    """Score `model` on each volume of `dataset`, one volume after the other.

    A batch never mixes two volumes, so a patient's score depends on that patient alone. The
    `criterion` is computed on the volume's logits (S, K, H, W) in float32. `other_members` are the
    further networks of an ensemble, each with its own dataset of the same patients. The probability
    is then the mean over all members. Surface distances take longer than all other scores of a
    patient, and `with_geometry=False` leaves them out. The generator yields one volume at a time
    and keeps no masks, so the caller decides which masks stay in memory.
    """
    model = fold_batch_norm(model)
    other_members = [(fold_batch_norm(member), view) for member, view in other_members]
    for volume in dataset.volumes:
        positions = dataset.of_volume(volume)
        masks: list[Tensor] = []
        batches = _volume_batches(dataset, positions, batch_size, device, masks)
        probability, logits = predict_volume(model, batches, inference, device.autocast)
        for member, view in other_members:
            member_batches = _volume_batches(view, view.of_volume(volume), batch_size, device, [])
            member_probability, _ = predict_volume(
                member, member_batches, inference, device.autocast
            )
            probability = probability + member_probability
        probability = probability / (1 + len(other_members))
        mask = torch.cat(masks)
        prediction = keep_components(to_mask(probability, inference), inference)
        loss = float(criterion(logits, mask)) if criterion is not None else float("nan")
        # HD95 must have the same unit for all patients. One volume without a spacing
        # therefore puts the whole cohort in pixels.
        spacing = dataset.store.spacing[volume].tolist() if dataset.in_mm else None
        truth = mask[:, 0].numpy()
        score = score_patient(
            dataset.store.volumes[volume],
            prediction,
            truth,
            spacing,
            loss,
            with_geometry,
            dataset.store.classes,
        )
        yield PatientResult(score, prediction, truth, probability.numpy())


def _volume_batches(
    dataset: MRIDataset, positions: np.ndarray, batch_size: int, device: Device, masks: list[Tensor]
) -> Iterator[Tensor]:
    """Yield the images of one volume in slice order, on the device.

    The masks of each batch are appended to `masks`, on the CPU.
    """
    for start in range(0, len(positions), batch_size):
        batch = dataset.gather(positions[start : start + batch_size], device.torch)
        masks.append(batch.mask.cpu())
        yield device.format(batch.image)
