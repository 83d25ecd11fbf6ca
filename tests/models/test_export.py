"""A network as ONNX and as pt2: the same logits on every size, its own instructions inside, nothing pickled, no path of this machine."""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from brainseg import export
from brainseg.cli.main import run_command
from brainseg.config import DataConfig, ExportConfig, ModelConfig, TrainConfig, UNetConfig
from brainseg.data.dataset import MRIDataset
from brainseg.data.store import Store
from brainseg.models import export as exported
from brainseg.models import networks
from brainseg.prediction.trained_model import load_checkpoint
from brainseg.reports.predictions import read_predictions
from brainseg.runs import checkpoint

Call = Callable[..., str]
ATTENTION = {"channels": [4, 8, 16], "strides": [2, 2]}
NETWORKS = {
    "depth 2": (UNetConfig(depth=2, width=4), DataConfig(), 2),
    "depth 3, context 1": (
        UNetConfig(depth=3, width=4, norm="instance"),
        DataConfig(channel="FLAIR", context=1),
        2,
    ),
    "three classes": (UNetConfig(depth=2, width=4, norm="group"), DataConfig(), 3),
    "deep supervision": (
        UNetConfig(depth=3, width=4, stem=2, deep_supervision=True),
        DataConfig(),
        2,
    ),
    "attention": (ModelConfig("AttentionUnet", ATTENTION), DataConfig(), 2),
    "segresnet": (
        ModelConfig("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
        DataConfig(),
        2,
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The exported file of a network of NETWORKS in a format, its checkpoint beside it; each made once."""
    folder = tmp_path_factory.mktemp("exported")

    def file(name: str, format: str) -> Path:
        path, source = folder / f"{name}.{format}", folder / f"{name}.pt"
        if not path.exists():
            model, data, classes = NETWORKS[name]
            write_checkpoint(source, model, data, classes)
            assert (
                export.run(ExportConfig(checkpoint=str(source), format=format, output=str(path)))
                == 0
            )
        return path

    return file


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            run_command("export", export.run, export.check_request, list(overrides))
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.out + shown.err
        return shown.out if code == 0 else shown.err

    return call


def write_checkpoint(path: Path, model: ModelConfig, data: DataConfig, classes: int = 2) -> Path:
    """A checkpoint as a run leaves it, of a network that has seen a few batches (so that its norms are not the identity)."""
    torch.manual_seed(0)
    config = TrainConfig(model=model, data=data)
    names = ["background", "oedema", "core"][:classes]
    in_channels = (1 if data.channel else 3) * (2 * data.context + 1)
    network = networks.build_network(model, in_channels, networks.num_outputs(names), (48, 40))
    for _ in range(3):
        network(torch.rand(2, in_channels, 32, 32))
    content = {
        "model": network.state_dict(),
        "config": dataclasses.asdict(config),
        "channels": ["pre", "FLAIR", "post"],
        "classes": names,
        "image_size": [48, 40],
        "uid": "f" * 32,
        "fingerprint": "d" * 64,
    }
    checkpoint.save(path, content)
    return path


FAST = (("depth 3, context 1", "onnx"), ("depth 3, context 1", "pt2"), ("three classes", "pt2"))
# Some ten seconds each.
SLOW = [
    pytest.param(name, format, marks=pytest.mark.slow)
    for name in NETWORKS
    for format in ("onnx", "pt2")
    if (name, format) not in FAST
]


@pytest.mark.parametrize(("name", "format"), [*FAST, *SLOW])
def test_the_file_is_the_network_on_every_size(
    name: str, format: str, files: Callable[[str, str], Path]
) -> None:
    path = files(name, format)
    content, multiple = path.read_bytes(), json.loads(facts_in(path)["pad_multiple"])
    trained = load_checkpoint(str(path.with_suffix(".pt")))
    network, run = (
        trained.network(),
        {"onnx": exported.run_onnx, "pt2": exported.run_pt2}[format](content),
    )
    for batch, height, width in ((1, 6, 9), (5, 11, 8)):
        images = torch.rand(batch, trained.in_channels, multiple * height, multiple * width)
        with torch.no_grad():
            expected = network(images).numpy()
        found = run(images.numpy())
        assert (
            found.shape == expected.shape
            and np.abs(found - expected).max() < 1e-4
            and expected.std() > 1e-3
        )
    assert (
        str(Path(__file__).resolve().parents[2]).encode() not in content
        and b"site-packages" not in content
    )


def facts_in(path: Path) -> dict[str, str]:
    """The metadata, by the format's own means."""
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("extra/facts.json")]
        return json.loads(archive.read(name))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_the_file_says_what_goes_in_and_what_comes_out(
    format: str, files: Callable[[str, str], Path]
) -> None:
    facts = facts_in(files("depth 3, context 1", format))
    assert json.loads(facts["inputs"]) == ["FLAIR -1", "FLAIR +0", "FLAIR +1"]
    assert (
        json.loads(facts["pad_multiple"]),
        json.loads(facts["threshold"]),
        json.loads(facts["context"]),
    ) == (4, 0.5, 1)
    assert (
        json.loads(facts["classes"]) == ["background", "oedema"]
        and facts["activation"] == "sigmoid"
    )
    assert (
        facts["uid"] == "f" * 32
        and "10th percentile" in facts["normalisation"]
        and "high its 99th percentile" in facts["normalisation"]
        and facts["context_step"] == "1"
        and "research only" in facts["notice"]
    )
    assert ("opset" in facts) == (format == "onnx")


def test_onnx_passes_the_checker_and_leaves_batch_height_and_width_free(
    files: Callable[[str, str], Path],
) -> None:
    path = files("three classes", "onnx")
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("image", ["batch", 3, "height", "width"])
    ]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        ("logits", ["batch", 3, "height", "width"])
    ]
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [
        exported.OPSET
    ]


def test_a_pt2_holds_no_pickle(files: Callable[[str, str], Path]) -> None:
    with zipfile.ZipFile(files("depth 2", "pt2")) as archive:
        assert all(
            not archive.read(name) for name in archive.namelist() if name.endswith((".pt", ".pkl"))
        )
        configs = [
            json.loads(archive.read(name))
            for name in archive.namelist()
            if name.endswith("_config.json")
        ]
    entries = [entry for config in configs for entry in config["config"].values()]
    assert entries and not any(entry["use_pickle"] for entry in entries)


def test_masks_made_by_the_file_alone_are_those_of_the_run(
    project: Path, tmp_path: Path, call: Call
) -> None:
    """As another program would: numpy, onnxruntime, the slices as stored, and what the file says of itself."""
    said = call(f"checkpoint={project / 'run'}", "output=network.onnx")
    assert said.count("logits differ from the network's by") == 2 and "For research only" in said
    session, facts = (
        onnxruntime.InferenceSession(tmp_path / "network.onnx"),
        facts_in(tmp_path / "network.onnx"),
    )
    predictions = project / "run" / "predictions.h5"
    with Store(next((project / "data").glob("*.h5"))) as store:
        patient = MRIDataset(
            store, patients=[json.loads((project / "run" / "split.json").read_text())["test"][0]]
        ).patients[0]
        volume = store.volumes.index(patient)
        raw = store.images(*store.first_slice[volume : volume + 2]).astype(np.float32)
        low, high = (
            np.percentile(raw, share, axis=(0, 2, 3)).reshape(1, -1, 1, 1).astype(np.float32)
            for share in (10, 99)
        )
        logits = session.run(None, {"image": np.clip((raw - low) / (high - low), 0, 1)})[0]
    mask = 1 / (1 + np.exp(-logits[:, 0])) >= json.loads(facts["threshold"])
    kept = read_predictions(predictions, patient).mask
    assert kept.any() and np.array_equal(mask, kept)


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "best.pt", *NETWORKS["depth 2"])
    sound = exported.run_pt2
    for wrong in (2e-4, np.nan):
        monkeypatch.setattr(
            exported,
            "run_pt2",
            lambda content, wrong=wrong: lambda images: sound(content)(images) + np.float32(wrong),
        )
        error = call(f"checkpoint={source}", "format=pt2", "output=network.pt2", code=1)
        assert error.startswith("error: network.pt2: not written") and error.count("\n") == 1
        assert {path.name for path in tmp_path.iterdir()} == {"best.pt"}


def test_a_network_of_one_size_is_refused_in_one_line(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(in_channels * 48 * 40, 48 * 40)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1)).view(-1, 1, 48, 40)

    monkeypatch.setattr(
        networks, "load_extension", lambda group, name: Fixed if name == "fixed" else None
    )
    network = Fixed(3, 1)
    content = {
        "model": network.state_dict(),
        "config": dataclasses.asdict(TrainConfig(model=ModelConfig("fixed"))),
        "image_size": [48, 40],
    }
    checkpoint.save(tmp_path / "best.pt", content)
    error = call("checkpoint=best.pt", "output=network.onnx", code=1)
    assert "Fixed has no graph with free height and width" in error and error.count("\n") == 1
    assert not (tmp_path / "network.onnx").exists()


def test_without_the_packages_it_says_how_to_get_them(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "best.pt", *NETWORKS["depth 2"])
    found = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util,
        "find_spec",
        lambda name: None if name == "onnxscript" else found(name),
    )
    error = call(f"checkpoint={source}", "output=network.onnx", code=2)
    assert (
        error == "error: format=onnx: needs the packages onnxscript; install them with "
        "pip install -e '.[export]' in a clone, or set format=pt2\n"
    )
    assert "written" in call(f"checkpoint={source}", "format=pt2", "output=network.pt2")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint=none.pt", "output=a.onnx"], ["checkpoint=none.pt", "no such file"]),
        (["checkpoint=best.pt", "output=a.pt"], ["output=a.pt", "ends in .onnx"]),
        (
            ["checkpoint=best.pt", "output=best.pt", "format=pt2"],
            ["output=best.pt", "ends in .pt2"],
        ),
        (["checkpoint=best.pt", "output=a.onnx", "format=tflite"], ["format=tflite", "onnx, pt2"]),
        (["checkpoint=best.pt", "output=folder.onnx"], ["output=folder.onnx", "is a folder"]),
        (["checkpoint=best.pt"], ["output must be given; add output=..."]),
    ],
)
def test_a_wrong_request_is_one_line(
    overrides: list[str], words: list[str], tmp_path: Path, call: Call
) -> None:
    write_checkpoint(tmp_path / "best.pt", *NETWORKS["depth 2"])
    (tmp_path / "folder.onnx").mkdir()
    error = call(*overrides, code=2)
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "folder.onnx"}


@pytest.mark.parametrize("size", [["a", 1], [0, 32], [32], "32x32", [10**9, 32]])
def test_a_size_that_cannot_be_is_not_believed(size: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "best.pt", {"model": {}, "image_size": size})
    assert load_checkpoint(str(tmp_path / "best.pt")).image_size is None
