r"""Export a trained network to one file for programs without brainseg, and verify its logits.

    python -m brainseg.export checkpoint=runs/RUN output=unet.onnx
    python -m brainseg.export checkpoint=models:/lgg@best format=pt2 output=unet.pt2
    python -m brainseg.export checkpoint=weights.pt model.depth=4 model.width=32 \
        model.growth=1 output=unet.onnx

Batch, height and width stay free. The metadata of the file describe the steps before and after the
network, such as channels, normalisation and threshold. A file whose logits differ from the
network's by more than 1e-4 is not written.
"""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import torch

from brainseg import __version__
from brainseg.cli.main import run_command
from brainseg.config import DataConfig, ExportConfig
from brainseg.core.errors import DataError, check
from brainseg.core.files import write_bytes
from brainseg.models import export, networks
from brainseg.prediction.trained_model import (
    DEFAULT_IMAGE_SIZE,
    TrainedModel,
    check_checkpoint_exists,
    load_members,
)

# Largest allowed difference of logits in float32. Another order of the same sums gives some 1e-6.
LARGEST_DIFFERENCE = 1e-4
# Bytes. A protobuf message cannot be larger.
ONNX_LIMIT = 2**31
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
NOTICE = "For research only. Not a medical device; not for diagnosis or treatment."
NORMALISATION = (
    "clip((image - low) / (high - low), 0, 1) with low the 10th percentile of each sequence over "
    "the whole volume and high {high}; a sequence with low = high gives zeros"
)
HIGH = {
    "percentile": "its 99th percentile",
    "median": "three times the median of the pixels above low + (p99 - low) / 10, p99 its 99th "
    "percentile, where image is uint8: whole numbers from 0 to 255 as they are, other values "
    "stretched so that the 0.5th percentile of the volume becomes 0 and the 99.5th 255",
}
CONTEXT_STEP = {"auto": "auto: the number of slices / 24, rounded, at least 1"}


def run(config: ExportConfig) -> int:
    """Export the network, compare its logits, write the file and return the exit code 0.

    Raises DataError if the network cannot be traced, or if the logits of the file differ.
    """
    (trained,) = load_members(
        [config.checkpoint],
        DataConfig(channel=config.data.channel, context=config.data.context),
        config.model,
    )
    network = trained.network()
    parameters = sum(
        tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()
    )
    fits = config.format != "onnx" or parameters < ONNX_LIMIT
    check(
        fits,
        "format",
        "onnx",
        f"{parameters / 1e9:.1f} GB of weights are more than an ONNX file holds",
        "use format=pt2",
    )

    program, multiple = export.trace_network(network, trained.in_channels)
    facts = collect_facts(trained, multiple, config.format)
    if config.format == "onnx":
        content = export.onnx_bytes(program, facts)
        runner = export.run_onnx(content)
    else:
        content = export.pt2_bytes(program, json.dumps(facts, indent=2))
        runner = export.run_pt2(content)

    for images in _random_images(trained, multiple):
        largest = export.largest_difference(network, runner, images)
        size = "x".join(map(str, images.shape))
        print(f"{size}: logits differ from the network's by {largest:.1e} at most")
        if not largest <= LARGEST_DIFFERENCE:
            raise DataError(
                f"{config.output}: not written, logits differ by {largest:.1e} on {size}; "
                f"the limit is {LARGEST_DIFFERENCE:g}"
            )
    write_bytes(config.output, content)
    print(f"written:       {config.output}, {len(content) / 1e6:.1f} MB\n{NOTICE}")
    return 0


def collect_facts(trained: TrainedModel, multiple: int, format: str) -> dict[str, str]:
    """Return the metadata that a user of the file needs, as text.

    Lists and numbers are JSON.
    """
    context, outputs = trained.data.context, networks.num_outputs(trained.classes)
    inputs = [
        f"{name} {offset:+d}" if context else name
        for offset in range(-context, context + 1)
        for name in trained.channels
    ]
    values = {
        "input": "image: float32 (batch, channels, height, width), axial slices",
        "output": "logits: float32 (batch, outputs, height, width)",
        "channels": trained.channels,
        "context": context,
        # Channels of the image. The first and last slice stand in for neighbours beyond them.
        "inputs": inputs,
        "context_step": CONTEXT_STEP.get(trained.data.context_step, trained.data.context_step),
        "normalisation": NORMALISATION.format(high=HIGH[trained.data.intensity]),
        "pad_multiple": multiple,
        "padding": "zeros below and to the right up to a multiple of pad_multiple; "
        "crop the logits again",
        "classes": trained.classes,
        "activation": "sigmoid"
        if outputs == 1
        else "softmax over the outputs; the mask is the most probable one",
        **({"threshold": trained.inference.threshold} if outputs == 1 else {}),
        "inference": dataclasses.asdict(trained.inference),
        **({"opset": export.OPSET} if format == "onnx" else {}),
        "model": dataclasses.asdict(
            trained.config.model if trained.config else trained.requested_model
        ),
        "uid": trained.stored.get("uid", ""),
        "data_fingerprint": trained.stored.get("fingerprint", ""),
        "brainseg": __version__,
        "torch": str(torch.__version__),
        "notice": NOTICE,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }


def _random_images(trained: TrainedModel, multiple: int) -> list[torch.Tensor]:
    """Return random images of two sizes and batches, on which file and network are compared.

    One size is that of the training. The other size is smaller and not square.
    """
    rows, columns = (
        -(-side // multiple) * multiple for side in trained.image_size or DEFAULT_IMAGE_SIZE
    )
    smaller = [multiple * max(side // 2 // multiple, 32 // multiple, 1) for side in (rows, columns)]
    generator = torch.Generator().manual_seed(0)
    sizes = [
        (1, trained.in_channels, rows, columns),
        (3, trained.in_channels, smaller[0], smaller[1] + multiple),
    ]
    return [torch.rand(size, generator=generator) for size in sizes]


def check_request(config: ExportConfig) -> None:
    """Raise RequestError for a request that cannot succeed, before any file is created."""
    check_checkpoint_exists(config.checkpoint)
    output = Path(config.output)
    check(
        not output.is_dir(),
        "output",
        output,
        "is a folder",
        f"name a file, such as unet.{config.format}",
    )
    folder = next(folder for folder in output.absolute().parents if folder.exists())
    check(
        folder.is_dir() and os.access(folder, os.W_OK),
        "output",
        output,
        f"{folder} cannot be written to",
        "choose another folder",
    )
    missing = (
        [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if config.format == "onnx"
        else []
    )
    check(
        not missing,
        "format",
        "onnx",
        f"needs the packages {', '.join(missing)}",
        "install them with pip install -e '.[export]' in a clone, or set format=pt2",
    )


def main() -> None:
    """Run `python -m brainseg.export` or `brainseg export`."""
    run_command("export", run, check_request)


if __name__ == "__main__":
    main()
