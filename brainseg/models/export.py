"""Export of a network to one file that runs without brainseg.

The formats are ONNX (Open Neural Network Exchange) and pt2, the exported program of torch.

Legend:  B batch, C channels in, K channels out, H W height and width. Both formats leave B, H and W
free.

`torch.export` traces the network with H and W as multiples of the size that its poolings need, so
that each pooling halves a size without remainder. A U-Net pads other sizes, but the file does not,
because this decision depends on numbers that a trace does not know. Neither file contains a pickle
or paths of the machine on which it was made.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from brainseg.core.errors import DataError

# Version of the ONNX operators in which torch writes its operators. A file of a higher version
# would be a conversion of it.
OPSET = 18
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
# Pixels. Below this size networks fail for other reasons than the multiple.
SMALLEST_SIZE = 64
# Name of the metadata in a pt2 file.
FACTS_FILE = "facts.json"

# A function from images float32 (B, C, H, W) to logits float32 (B, K, H, W).
Runner = Callable[[np.ndarray], np.ndarray]


def trace_network(model: nn.Module, in_channels: int) -> tuple[torch.export.ExportedProgram, int]:
    """Return the graph of a network in eval mode, and the number that must divide H and W.

    Raises DataError if the network has no graph with free height and width.
    """
    reasons = []
    for multiple in _candidate_multiples(model, in_channels):
        batch, height, width = (
            torch.export.Dim("batch"),
            torch.export.Dim("rows", min=1),
            torch.export.Dim("columns", min=1),
        )
        shapes = {0: batch, 2: multiple * height, 3: multiple * width}
        sides = [multiple * (SMALLEST_SIZE // multiple + extra) for extra in (1, 2)]
        try:
            with _suppress_warnings():
                program = torch.export.export(
                    model,
                    (torch.rand(2, in_channels, *sides),),
                    dynamic_shapes=(shapes,),
                    strict=False,
                )
        except Exception as error:
            # The code of a network can be anything, and torch.export raises many kinds of errors.
            reasons.append(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                if str(error).strip()
                else repr(error)
            )
            continue
        # torch would store the example inputs as a pickle.
        program.example_inputs = None
        for node in program.graph.nodes:
            # Stack traces contain paths of this machine.
            node.meta.pop("stack_trace", None)
        return program, multiple
    reason = reasons[-1] if reasons else "it takes images of one size only"
    raise DataError(
        f"{type(model).__name__} has no graph with free height and width ({reason}); "
        "export a network that has one, such as unet"
    )


def onnx_bytes(program: torch.export.ExportedProgram, facts: Mapping[str, str]) -> bytes:
    """Return the program as the bytes of an ONNX file with the facts in its metadata.

    Raises DataError if ONNX has no operator for a part of the program.
    """
    import onnx

    try:
        with _suppress_warnings():
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(
            f"ONNX has no operator for a part of the network ({reason}); try format=pt2"
        ) from error
    assert onnx_program is not None
    proto = onnx_program.model_proto
    for node in proto.graph.node:
        # The metadata of a node contain paths of this machine, too.
        del node.metadata_props[:]
    # These contain the names of the sizes that are replaced next.
    del proto.graph.metadata_props[:], proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in {0: "batch", 2: "height", 3: "width"}.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    proto.producer_name, proto.producer_version = "brainseg", facts["brainseg"]
    onnx.helper.set_model_props(proto, dict(facts))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def pt2_bytes(program: torch.export.ExportedProgram, facts: str) -> bytes:
    """Return the program as the bytes of a pt2 file that contains the facts as JSON."""
    file = io.BytesIO()
    with _suppress_warnings():
        torch.export.save(program, file, extra_files={FACTS_FILE: facts})
    return file.getvalue()


def run_onnx(content: bytes) -> Runner:
    """Return a function that runs the file with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"image": images})[0]


def run_pt2(content: bytes) -> Runner:
    """Return a function that runs the file with torch on the CPU.

    The bytes must come from `pt2_bytes`, because `torch.export.load` unpickles the content of a
    file, which is unsafe for files of others.
    """
    with _suppress_warnings():
        program = torch.export.load(io.BytesIO(content)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(images)).numpy()

    return run


def largest_difference(model: nn.Module, run: Runner, images: Tensor) -> float:
    """Return the largest absolute difference of the logits on images (B, C, H, W).

    The difference is infinite if the shapes differ or a logit is NaN.
    """
    with torch.no_grad():
        expected = model(images).numpy()
    logits = run(images.numpy())
    if logits.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(logits - expected).max())
    # Only NaN differs from itself.
    return largest if largest == largest else float("inf")


def _candidate_multiples(model: nn.Module, in_channels: int) -> Iterator[int]:
    """Yield the numbers that may have to divide H and W, the smallest first.

    This is the attribute `multiple` of the network. Without this attribute, numbers are tried, and
    those with which an image passes through the network are yielded.
    """
    if isinstance(declared := getattr(model, "multiple", None), int):
        yield declared
        return
    # On the meta device a forward takes neither memory nor time.
    shapes_only = copy.deepcopy(model).to("meta")
    for multiple in MULTIPLES:
        # An odd factor makes sizes that are no multiples of twice the number.
        odd = SMALLEST_SIZE // multiple | 1
        height, width = multiple * odd, multiple * (odd + 2)
        try:
            with torch.no_grad():
                fits = shapes_only(torch.empty(1, in_channels, height, width, device="meta")).shape[
                    -2:
                ] == (height, width)
        except Exception:
            # A network may raise any error for a size that it does not support.
            fits = False
        if fits:
            yield multiple


@contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Suppress torch's warnings of deprecations and of operators of packages not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
