"""Settings of brainseg.predict and brainseg.export, which need no truth."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from brainseg.config.data import DataConfig
from brainseg.config.fields import check_choice, check_names, check_range, setting
from brainseg.config.model import ModelConfig
from brainseg.config.train import DeviceConfig
from brainseg.core.errors import check
from brainseg.weights import DEFAULT

# Every command that takes a checkpoint shares this help text.
CHECKPOINT = (
    "checkpoint file, run folder, runs:/ID, models:/NAME@ALIAS, or lgg, the trained network of "
    "this package"
)


@dataclass
class InferenceOverride:
    """Settings of `InferenceConfig`, in which null stands for the value of the checkpoint."""

    threshold: float | None = setting(
        None, "probability from which a pixel is tumour; null: value of the checkpoint"
    )
    flips: str | None = setting(
        None,
        "test-time augmentation: none, horizontal, vertical, both; null: value of the checkpoint",
    )
    components: str | None = setting(
        None,
        "3-D connected components kept: all, largest, min_volume; null: value of the checkpoint",
    )
    min_volume: int | None = setting(
        None, "smallest component kept, in voxels; null: value of the checkpoint"
    )


@dataclass
class InputConfig:
    """Settings of the network's input, for weights stored without a config."""

    channel: str | None = setting(
        None,
        "MRI sequence that the network takes, such as FLAIR; null: all three of the public dataset",
    )
    context: int = setting(0, "adjacent slices on each side, as additional channels (2.5D)")

    def __post_init__(self) -> None:
        check_range("data.context", self.context, 0, 16)


@dataclass
class PredictConfig:
    """Settings of `brainseg.predict`."""

    checkpoint: Any = setting(DEFAULT, f"{CHECKPOINT}; a list is an ensemble")
    input: Any = setting(
        MISSING,
        "slices, TIFF stack, image file, or folder of them; a list gives one file per MRI "
        "sequence, in the order of the checkpoint",
    )
    output: str = setting("predictions", "folder to write to")
    sequences: dict[str, str] = setting(
        {},
        "file, subfolder, DICOM series or pattern of each MRI sequence, for example "
        "sequences.FLAIR=NAME",
    )
    volume: int | None = setting(
        None, "number of the volume to read from files with several volumes, counted from 1"
    )
    probabilities: bool = setting(False, "also write the probabilities")
    overlays: bool = setting(True, "draw each case, and a contact sheet of all cases")
    viewer: int = setting(
        20,
        "number of cases in viewer.html: worst, median and best cases, or without scores the "
        "largest tumours; 0: no viewer",
    )
    batch_size: int = setting(8, "number of slices per batch")
    data: InputConfig = setting(InputConfig, "the network's input, for weights stored without it")
    model: ModelConfig = setting(ModelConfig, "the network, for weights stored without it")
    device: DeviceConfig = setting(DeviceConfig, "device and precision")
    inference: InferenceOverride = setting(InferenceOverride, "null: as in the checkpoint")

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("viewer", self.viewer, 0, 1000)
        self.checkpoint = check_names("checkpoint", self.checkpoint)
        is_valid = bool(self.paths) and all(isinstance(path, str) and path for path in self.paths)
        check(
            is_valid,
            "input",
            self.input,
            "must be a path, or a list of paths",
            "write for example input=[pre.nii.gz,flair.nii.gz,post.nii.gz]",
        )
        check(
            isinstance(self.sequences, dict),
            "sequences",
            self.sequences,
            "must assign files to the names of sequences",
            "write for example sequences.FLAIR=flair.nii.gz",
        )
        for name, path in self.sequences.items():
            # YAML reads a folder name such as 5 as a number, while paths are text.
            is_text = isinstance(path, str | int | float) and str(path) != ""
            check(
                is_text,
                f"sequences.{name}",
                path,
                "must be the name of a file, subfolder or series",
            )
            self.sequences[name] = str(path)
        check(
            self.volume is None or self.volume >= 1,
            "volume",
            self.volume,
            "must be at least 1",
            "volumes are counted from 1",
        )

    @property
    def paths(self) -> list[str]:
        """Files and folders of `input`, without the nulls that stand for missing sequences."""
        return (
            [path for path in self.input if path is not None]
            if isinstance(self.input, list)
            else [self.input]
        )

    @property
    def data_config(self) -> DataConfig:
        """The input settings as a `DataConfig`."""
        return DataConfig(channel=self.data.channel, context=self.data.context)


@dataclass
class ExportConfig:
    """Settings of `brainseg.export`."""

    checkpoint: str = setting(MISSING, CHECKPOINT)
    format: str = setting("onnx", "onnx, or pt2 (torch.export)")
    output: str = setting(MISSING, "file to write, such as unet.onnx or unet.pt2")
    data: InputConfig = setting(InputConfig, "the network's input, for weights stored without it")
    model: ModelConfig = setting(ModelConfig, "the network, for weights stored without it")

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("onnx", "pt2"))
        has_suffix = self.output == MISSING or self.output.endswith(f".{self.format}")
        check(
            has_suffix,
            "output",
            self.output,
            f"format={self.format} writes a file that ends in .{self.format}",
            "choose another name, or another format",
        )
