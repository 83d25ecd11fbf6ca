"""Networks of segmentation_models_pytorch (extra `smp`), by names such as smp.Unet.

They pair the encoders of image classifiers, such as ResNet, with decoders for segmentation. The
library would download weights for the encoder, which is switched off. `initial=FILE` begins with
those of a file.
"""

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from brainseg.core.errors import RequestError, check
from brainseg.core.extensions import known_names

PREFIX = "smp."
LIBRARY = "segmentation_models_pytorch"
# The largest stride of an encoder.
STRIDE = 32
# Options of timm's encoders that read weights. `initial` does that, and checks whom they have seen.
LOADING_OPTIONS = ("checkpoint_path", "cache_dir")


def find_smp_class(name: str) -> type[nn.Module] | None:
    """Return the network class that `name` stands for, or None if it does not begin with `smp.`.

    Its networks take images (B, C, H, W) of any size. Raises RequestError if the library has no
    such network, or is missing or broken.
    """
    return _pad_images(_find_class(name)) if name.startswith(PREFIX) else None


def smp_arguments(name: str, options: Mapping[str, Any], out_channels: int) -> dict[str, object]:
    """Return the arguments that a run decides: logits of its classes, and no downloaded weights.

    Raises RequestError for an option that the library would silently ignore. Its classes pass
    unknown options on to the encoder, and only the encoders of timm (`tu-...`) reject them.
    """
    fixed: dict[str, object] = {
        "classes": out_channels,
        "encoder_weights": None,
        "activation": None,
        "aux_params": None,
    }
    parameters = dict(_signature(_find_class(name)).parameters)
    parameters.pop("kwargs", None)
    offered = [key for key in parameters if key not in ("in_channels", *fixed)]
    encoder = str(options.get("encoder_name"))
    check(
        ":" not in encoder,
        "model.options.encoder_name",
        encoder,
        "names a place to load from, and nothing is downloaded",
        "name an encoder, and give its weights as initial=FILE",
    )
    for key, value in options.items():
        check(
            (encoder.startswith("tu-") and key not in LOADING_OPTIONS) or key in parameters,
            f"model.options.{key}",
            value,
            f"{name} takes no such option",
            f"known: {', '.join(offered)}",
        )
    return fixed


def _find_class(name: str) -> type[nn.Module]:
    """Return the library's class. Raises RequestError if there is none."""
    classes = {
        f"{PREFIX}{key}": member
        for key, member in vars(_import_library(name)).items()
        if inspect.isclass(member) and issubclass(member, nn.Module)
    }
    check(name in classes, "model.name", name, "no such network", known_names(name, classes))
    return classes[name]


def _import_library(name: str) -> ModuleType:
    """Return the module. Raises RequestError if it is not installed or cannot be imported."""
    check(
        find_spec(LIBRARY) is not None,
        "model.name",
        name,
        f"{LIBRARY} is not installed",
        "pip install 'brainseg-runner[smp]', or in a clone: pip install -e '.[smp]'",
    )
    try:
        import segmentation_models_pytorch
    # The import runs torchvision's, which raises a RuntimeError if it was built for another build
    # of PyTorch, and may raise anything else.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise RequestError(
            f"model.name={name}: {LIBRARY} cannot be imported ({reason}); if torchvision is the "
            "reason, install the one of your build of PyTorch, for example: pip install "
            "torchvision --extra-index-url https://download.pytorch.org/whl/cpu"
        ) from error
    return segmentation_models_pytorch


def _pad_images(network_class: type[nn.Module]) -> type[nn.Module]:
    """Return a class of the same networks that pads images of a size that they would refuse.

    Most of them need sides that 32 divides, and 240 does not. As in the U-Net of this package,
    zeros are added below and to the right.
    """

    class Padded(network_class):  # type: ignore[misc, valid-type]
        def forward(self, images: Tensor) -> Tensor:
            height, width = images.shape[-2:]
            padded = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
            logits: Tensor = super().forward(padded)
            return logits[..., :height, :width]

    # Python before 3.11.4 would take the signature of a `__new__(*args, **kwargs)` in the library,
    # which hides that there are arguments for the channels and against downloads.
    Padded.__signature__ = _signature(network_class)
    return Padded


def _signature(network_class: type[nn.Module]) -> inspect.Signature:
    """Return the signature of the class without `self`."""
    signature = inspect.signature(network_class.__init__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
