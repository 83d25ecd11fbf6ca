"""brainseg: a Hydra-configured experiment runner for tumour segmentation in brain MRI.

from brainseg import UNet, DiceLoss, MRIDataset
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from brainseg.core.signals import exit_on_signals

if TYPE_CHECKING:
    from brainseg.data.dataset import MRIDataset
    from brainseg.data.readers.base import Reader, Scan
    from brainseg.models.unet import UNet
    from brainseg.prediction.segmenter import segment
    from brainseg.prediction.trained_model import load_checkpoint
    from brainseg.training.losses import DiceLoss

__version__ = "0.1.0"
__all__ = [
    "DiceLoss",
    "MRIDataset",
    "Reader",
    "Scan",
    "UNet",
    "__version__",
    "load_checkpoint",
    "segment",
]

if (
    sys.argv[:1] == ["-m"]
):  # python -m brainseg.train, before its imports; a program that imports brainseg keeps its signals
    exit_on_signals()
    if find_spec("hydra") is None:  # the commonest slip after `make train`
        sys.exit(
            f"error: brainseg's packages are not in this Python, {sys.executable}; first: make setup, then . .venv/bin/activate"
        )

_HOME = {
    "UNet": "brainseg.models.unet",
    "DiceLoss": "brainseg.training.losses",
    "MRIDataset": "brainseg.data.dataset",
    "Reader": "brainseg.data.readers.base",
    "Scan": "brainseg.data.readers.base",
    "segment": "brainseg.prediction.segmenter",
    "load_checkpoint": "brainseg.prediction.trained_model",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `python -m brainseg.prepare` needs no torch, which takes a second."""
    if name not in _HOME:
        raise AttributeError(f"module 'brainseg' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Names that are imported on first use are there for completion, too."""
    return sorted({*globals(), *__all__})
