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

# `python -m brainseg.train` has this argv before its imports. A program that imports brainseg must
# keep its own signal handlers.
if sys.argv[:1] == ["-m"]:
    exit_on_signals()
    # After `make train`, which needs no activated .venv, users often forget to activate it.
    if find_spec("hydra") is None:
        sys.exit(
            f"error: brainseg's packages are not installed in this Python, {sys.executable}; "
            "run `make setup`, then `. .venv/bin/activate`"
        )

_MODULES = {
    "UNet": "brainseg.models.unet",
    "DiceLoss": "brainseg.training.losses",
    "MRIDataset": "brainseg.data.dataset",
    "Reader": "brainseg.data.readers.base",
    "Scan": "brainseg.data.readers.base",
    "segment": "brainseg.prediction.segmenter",
    "load_checkpoint": "brainseg.prediction.trained_model",
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use.

    `python -m brainseg.prepare` needs no torch, whose import takes a second.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'brainseg' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return all names, including those that are imported on first use, for completion."""
    return sorted({*globals(), *__all__})
