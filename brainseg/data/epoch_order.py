"""The order of the slices of an epoch, with oversampling of tumour slices and of patients."""

import numpy as np
import torch

from brainseg.core.errors import check
from brainseg.core.seeds import generator_for
from brainseg.data.dataset import MRIDataset


def epoch_order(
    dataset: MRIDataset,
    seed: int,
    epoch: int,
    tumour_share: float | None = None,
    even_patients: bool = False,
) -> np.ndarray:
    """Return the positions of the slices of one epoch in their order.

    Without `tumour_share` every slice comes once. With it the epoch has the same length, and this
    share of its positions are tumour slices. Within the slices with tumour, and within those
    without, the numbers of repetitions differ by at most one. With `even_patients` the numbers of
    slices of two patients differ by at most one instead, within each of the two kinds. The order is
    a function of (seed, epoch) alone, so that a resumed run continues in the same order.
    """
    generator = generator_for(seed, "order", epoch)
    if tumour_share is None and not even_patients:
        return torch.randperm(len(dataset), generator=generator).numpy()
    tumour = dataset.has_tumour
    if tumour_share is None:
        tumour_share = float(tumour.mean())
    tumour_count = round(tumour_share * len(dataset))
    parts = []
    for positions, count, rule in (
        (np.flatnonzero(tumour), tumour_count, "no training slice has tumour"),
        (np.flatnonzero(~tumour), len(dataset) - tumour_count, "every training slice has tumour"),
    ):
        check(
            bool(len(positions)) or not count,
            "data.tumour_share",
            tumour_share,
            rule,
            "set it to null",
        )
        if even_patients:
            parts += _draw_by_patient(dataset, positions, count, generator)
        else:
            parts.append(_draw_evenly(positions, count, generator))
    order = np.concatenate(parts)
    return order[torch.randperm(len(order), generator=generator).numpy()]


def _draw_by_patient(
    dataset: MRIDataset, positions: np.ndarray, count: int, generator: torch.Generator
) -> list[np.ndarray]:
    """Return `count` positions by patient, with numbers per patient that differ by at most one."""
    patients = dataset.patient_index(positions)
    names = np.unique(patients)
    shares = np.full(len(names), count // max(len(names), 1))
    # The patients with one more slice are drawn anew in each epoch.
    more = torch.randperm(len(names), generator=generator).numpy()[: count - shares.sum()]
    shares[more] += 1
    return [
        _draw_evenly(positions[patients == name], int(share), generator)
        for name, share in zip(names, shares, strict=True)
    ]


def _draw_evenly(positions: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """Return `count` of the positions, whose numbers of repetitions differ by at most one."""
    # Each round is a permutation of all positions, so that slices are repeated evenly.
    rounds = [
        torch.randperm(len(positions), generator=generator).numpy()
        for _ in range(-(-count // max(len(positions), 1)))
    ]
    return positions[np.concatenate([*rounds, np.empty(0, np.int64)])[:count]]
