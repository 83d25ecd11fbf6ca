"""The file predictions.h5 with the masks of each patient that a run or an evaluation scored.

    volumes (V,), roles (V,)           UTF-8
    first_slice (V + 1,)               int64, rows first_slice[v] to first_slice[v + 1] are volume v
    masks (N, H, W)                    uint8 class index, after threshold and choice of components
    probabilities (N, K, H, W)         uint8 in 1/255, before both, K outputs of the model

Masks are written unless `predictions=none` and take about 150 bytes per slice. Probabilities are
written under `predictions=probabilities`. Every dataset has checksums, and the large datasets are
compressed.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from brainseg.core.errors import DataError, shorten_error
from brainseg.core.files import write_bytes
from brainseg.data.store import DAMAGE_ERRORS, part_of
from brainseg.data.store_writer import fixed_length

REMEDY = "make it again with python -m brainseg.evaluate"


class Prediction(NamedTuple):
    """The stored masks of a volume.

    The mask is uint8 (S, H, W), and the probability uint8 (S, K, H, W) in 1/255 or None.
    """

    volume: str
    role: str
    mask: np.ndarray
    probability: np.ndarray | None

    @classmethod
    def of(
        cls, volume: str, role: str, mask: np.ndarray, probability: np.ndarray | None
    ) -> "Prediction":
        """Return a prediction with a probability in [0, 1], rounded to eight bits.

        The rounding error is at most 0.002. The float probabilities of a cohort would take 1 GB.
        """
        return cls(
            volume,
            role,
            mask,
            None if probability is None else np.rint(probability * 255).astype(np.uint8),
        )


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions.h5 atomically, with the volumes in the order of `predictions`.

    Probabilities are written if the first prediction has them.
    """
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": False, "fletcher32": True}
    slice_counts = [len(prediction.mask) for prediction in predictions]
    first_slice = np.cumsum([0, *slice_counts], dtype=np.int64)
    # The file is built in memory, because HDF5 would crash the interpreter on a full disk.
    image = BytesIO()
    with h5py.File(image, "w", libver="latest") as file:
        file.create_dataset("first_slice", data=first_slice, fletcher32=True)
        for name, texts in (
            ("volumes", [prediction.volume for prediction in predictions]),
            ("roles", [prediction.role for prediction in predictions]),
        ):
            encoded = fixed_length(texts)
            file.create_dataset(name, data=encoded, chunks=encoded.shape, fletcher32=True)
        for name in ("masks", "probabilities"):
            parts = [
                prediction.mask if name == "masks" else prediction.probability
                for prediction in predictions
            ]
            if parts[0] is None:
                continue
            shape = (int(first_slice[-1]), *parts[0].shape[1:])
            dataset = file.create_dataset(name, shape, np.uint8, chunks=(1, *shape[1:]), **options)
            for start, stop, part in zip(first_slice[:-1], first_slice[1:], parts, strict=True):
                dataset[start:stop] = part
    write_bytes(path, image.getbuffer())


def read_predictions(path: str | Path, volume: str) -> Prediction:
    """Return the prediction of a volume.

    Raises DataError if the file is damaged or does not contain the volume.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            names = (
                "volumes",
                "roles",
                "first_slice",
                "masks",
                *(["probabilities"] if "probabilities" in file else []),
            )
            parts = {name: part_of(file, name, REMEDY) for name in names}
            volumes = [bytes(name).decode() for name in parts["volumes"][:]]
            if volume not in volumes:
                raise DataError(
                    f"{path} does not contain volume {volume}; it contains {', '.join(volumes[:5])}"
                )
            index = volumes.index(volume)
            start, stop = parts["first_slice"][index : index + 2]
            probability = parts["probabilities"][start:stop] if "probabilities" in parts else None
            return Prediction(
                volume,
                bytes(parts["roles"][index]).decode(),
                parts["masks"][start:stop],
                probability,
            )
    except DAMAGE_ERRORS as error:
        if isinstance(error, DataError):
            raise
        reason = shorten_error(error)
        raise DataError(
            f"{path} is damaged or contains no predictions ({reason}); {REMEDY}"
        ) from error
