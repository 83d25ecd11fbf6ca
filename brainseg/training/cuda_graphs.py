"""The forward pass of training as a CUDA graph, which launches all of its kernels at once.

A small network at batch 8 has some 160 kernels per forward and backward pass. Launching them one
by one is expected to take longer than computing them, which has not been measured on a GPU here.
`torch.cuda.make_graphed_callables` records the kernels of both passes for one shape of the input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from brainseg.config import TrainConfig
from brainseg.core.errors import check
from brainseg.device import Device
from brainseg.models.unet import UNet

# A network with deep supervision returns the logits of several levels.
Forward = Callable[[Tensor], Tensor | list[Tensor]]


@contextmanager
def training_forward(model: nn.Module, config: TrainConfig, device: Device) -> Iterator[Forward]:
    """Yield the callable of the forward pass in training: the model, compiled or as a CUDA graph.

    Checkpoints contain the model itself. Call the result inside `device.autocast()`. The memory of
    the graphs is freed at the end of the block.
    """
    if uses_graphs(config, device) and (config.device.graphs == "yes" or isinstance(model, UNet)):
        graphs = GraphedForward(model, config.batch_size)
        try:
            yield graphs
        finally:
            graphs.close()
    else:
        yield device.forward(model)


def uses_graphs(config: TrainConfig, device: Device) -> bool:
    """Return True if the settings and the device allow CUDA graphs."""
    return config.device.graphs != "no" and _is_possible(config) and device.torch.type == "cuda"


def check_graphs(config: TrainConfig) -> None:
    """Raise RequestError if device.graphs=yes meets a setting that graphs exclude."""
    check(
        config.device.graphs != "yes" or _is_possible(config),
        "device.graphs",
        "yes",
        "needs a CUDA GPU, and is not possible with accumulate above 1 or device.compile=true",
        "leave device.graphs=auto",
    )


def _is_possible(config: TrainConfig) -> bool:
    """Return True unless accumulation, compilation or the device's name exclude graphs.

    Under gradient accumulation a replay would overwrite the gradients of the batch before it. A
    compiled model has its own graphs.
    """
    is_gpu = config.device.name == "auto" or config.device.name.startswith("cuda")
    return config.accumulate == 1 and not config.device.compile and is_gpu


class GraphedForward:
    """The forward pass of a model in training mode, recorded once per shape of a full batch.

    The last batch of an epoch may be smaller. It is computed without a graph, because recording
    costs several passes, for few such batches in a run.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.recorded: dict[tuple[int, ...], nn.Module] = {}

    def __call__(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the model's logits (B, K, H, W) of an image (B, C, H, W), or those of levels."""
        if len(image) != self.batch_size:
            return self.model(image)
        shape = tuple(image.shape)
        if shape not in self.recorded:
            # A run has one size at a time: the smaller one first, under progressive resizing.
            self.close()
            self.recorded[shape] = self._record(image)
        return self.recorded[shape](image)

    def close(self) -> None:
        """Free the memory of the recorded kernels."""
        for body in self.recorded.values():
            # The attribute that recording sets refers to the module itself, and would keep it.
            del body.forward
        self.recorded.clear()

    def _record(self, image: Tensor) -> nn.Module:
        """Return a module that replays the kernels for images of this shape.

        Recording runs the model several times. Statistics of norms and the random state are put
        back, so that the step gives the same numbers as without a graph.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        random_state = torch.cuda.get_rng_state(image.device)
        # The model itself has forward hooks on its layers, which recording accepts, but it must not
        # get the attribute `forward` that recording sets.
        body = _Body(self.model).train()
        graphed = torch.cuda.make_graphed_callables(
            body, (image.detach().clone(),), allow_unused_input=True
        )
        assert isinstance(graphed, nn.Module)
        torch.cuda.set_rng_state(random_state, image.device)
        with torch.no_grad():
            for buffer, former in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(former)
        return graphed


class _Body(nn.Module):
    """A module around the model, so that the model keeps its own `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the output of the model."""
        return self.model(image)
