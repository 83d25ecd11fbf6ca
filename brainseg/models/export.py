"""A network as one file that runs without brainseg: ONNX (Open Neural Network Exchange), or pt2, torch's own exported program.

Legend:  B batch, C channels in, K channels out, H W height and width; both formats leave B, H and W free.

Both are traced by `torch.export` with H and W as multiples of what the network needs: its poolings halve a size without rest
then. Where a U-Net pads other sizes by itself the file does not: that decision hangs on numbers that a trace does not know.
Neither file holds a pickle, nor the paths of the machine it was made on.
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

OPSET = 18  # of ONNX: the one that torch's operators are written in; a higher one would be a conversion of it
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
LEAST = 64  # pixels: below, networks fail for other reasons than the multiple
FACTS_FILE = "facts.json"  # in a pt2

Runner = Callable[
    [np.ndarray], np.ndarray
]  # images float32 (B, C, H, W) -> logits float32 (B, K, H, W)


def trace(model: nn.Module, in_channels: int) -> tuple[torch.export.ExportedProgram, int]:
    """The network in eval mode as a graph, and the multiple that H and W have to be. Raises DataError if it has no such graph."""
    reasons = []
    for multiple in _multiples(model, in_channels):
        batch, height, width = (
            torch.export.Dim("batch"),
            torch.export.Dim("rows", min=1),
            torch.export.Dim("columns", min=1),
        )
        shapes = {0: batch, 2: multiple * height, 3: multiple * width}
        sides = [multiple * (LEAST // multiple + further) for further in (1, 2)]
        try:
            with _quiet():
                program = torch.export.export(
                    model,
                    (torch.rand(2, in_channels, *sides),),
                    dynamic_shapes=(shapes,),
                    strict=False,
                )
        except Exception as error:  # a network does anything in its forward, and torch.export has an exception for each
            reasons.append(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                if str(error).strip()
                else repr(error)
            )
            continue
        program.example_inputs = None  # it would be kept as a pickle
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        return program, multiple
    reason = reasons[-1] if reasons else "it takes images of one size only"
    raise DataError(
        f"{type(model).__name__} has no graph with free height and width ({reason}); unet has one"
    )


def onnx_bytes(program: torch.export.ExportedProgram, facts: Mapping[str, str]) -> bytes:
    """The program as an ONNX file with the facts in its metadata. Raises DataError if it holds what ONNX cannot say."""
    import onnx

    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise DataError(
            f"ONNX has no operator for a part of it ({str(error).strip().splitlines()[0][:200]}); format=pt2 may do"
        ) from error
    assert made is not None
    proto = made.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # again the paths
    del (
        proto.graph.metadata_props[:],
        proto.graph.value_info[:],
    )  # sizes under names that the next lines replace
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in {0: "batch", 2: "height", 3: "width"}.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    proto.producer_name, proto.producer_version = "brainseg", facts["brainseg"]
    onnx.helper.set_model_props(proto, dict(facts))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def pt2_bytes(program: torch.export.ExportedProgram, facts: str) -> bytes:
    """The program as torch writes it, with the facts as JSON beside it."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={FACTS_FILE: facts})
    return file.getvalue()


def run_onnx(content: bytes) -> Runner:
    """The file as onnxruntime runs it, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"image": images})[0]


def run_pt2(content: bytes) -> Runner:
    """The file as torch runs it, on the CPU. Only for bytes made here: `torch.export.load` unpickles what a file asks it to."""
    with _quiet():
        program = torch.export.load(io.BytesIO(content)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(images)).numpy()

    return run


def difference(model: nn.Module, run: Runner, images: Tensor) -> float:
    """Largest absolute difference of the logits on images (B, C, H, W); infinite if a shape or a NaN differs."""
    with torch.no_grad():
        expected = model(images).numpy()
    found = run(images.numpy())
    if found.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(found - expected).max())
    return largest if largest == largest else float("inf")


def _multiples(model: nn.Module, in_channels: int) -> Iterator[int]:
    """The multiples that may do, the smallest first: what the network says of itself, else those whose sizes pass through it."""
    if isinstance(own := getattr(model, "multiple", None), int):
        yield own
        return
    shapes_only = copy.deepcopy(model).to("meta")  # no memory, no time
    for multiple in MULTIPLES:
        odd = LEAST // multiple | 1  # times an odd number: no multiple of twice as much
        height, width = multiple * odd, multiple * (odd + 2)
        try:
            with torch.no_grad():
                fits = shapes_only(torch.empty(1, in_channels, height, width, device="meta")).shape[
                    -2:
                ] == (height, width)
        except Exception:  # the network's own, for a size that it cannot take
            fits = False
        if fits:
            yield multiple


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch does not warn of operators of libraries that are not installed, nor of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
