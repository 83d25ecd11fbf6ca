"""Networks of segmentation_models_pytorch: trained, begun with a classifier's weights, refused.

Run by `make test-smp`, which installs the library. The tests of its absence belong to `make test`.
"""

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from two_steps import check_that_it_trains, train_two_steps

from brainseg.config import ModelConfig
from brainseg.core.errors import RequestError
from brainseg.models import smp
from brainseg.models.networks import build_network
from brainseg.prediction.trained_model import load_checkpoint

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
ROWS = re.findall(r"^\| `(smp\.\w+)` \| `(\{.*\})` \|", PAGE, re.MULTILINE)


# Images of 104 x 104 pixels, which 32 does not divide.
SMALL = ["model=smp", "data.phantom.size=104", "device.threads=1"]


def test_the_table_names_each_network_of_the_library() -> None:
    names = {name for name, _ in ROWS}
    assert len(names) == 12 and {"smp.Unet", "smp.DPT", "smp.Segformer"} <= names


@pytest.mark.smp
@pytest.mark.parametrize(("name", "options"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_a_network_of_the_table_trains_for_two_steps(
    name: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_that_it_trains(*SMALL, f"model.name={name}", f"model.options={options}")


@pytest.mark.smp
def test_each_class_of_the_library_is_in_the_table() -> None:
    library = smp._import_library("smp.Unet")
    classes = {name for name, member in vars(library).items() if isinstance(member, type)}
    assert {f"smp.{name}" for name in classes} == {name for name, _ in ROWS}


@pytest.mark.smp
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_a_run_begins_with_the_weights_of_a_classifier(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from torchvision.models import resnet18

    monkeypatch.chdir(tmp_path)
    classifier = resnet18()
    torch.save(classifier.state_dict(), "resnet18.pth")
    options = f"model.options.encoder_name={encoder}"
    settings = [options, "initial=resnet18.pth", "optimizer.lr=0", "data.context=1"]
    assert train_two_steps(*SMALL, *settings) == 0
    output = "".join(capsys.readouterr())
    assert "initial:      120 of " in output and "not used of the source: fc.weight" in output
    inner = "encoder." if encoder == "resnet18" else "encoder.model."
    facts = json.loads(Path("run/run.json").read_text())["initial"]
    assert facts["loaded"] == 120 and facts["unused"] == ["fc.weight", "fc.bias"]
    assert facts["adapted"] == [f"{inner}conv1.weight"]
    trained = load_checkpoint("run").network().state_dict()
    for name, weight in classifier.state_dict().items():
        if name == "conv1.weight":
            # Three slices of three sequences, instead of red, green and blue.
            expected = weight.repeat(1, 3, 1, 1) / 3
            assert torch.allclose(trained[inner + name], expected, atol=1e-6)
        elif name.endswith("weight") and not name.startswith("fc"):
            assert torch.equal(trained[inner + name], weight), name


@pytest.mark.smp
def test_the_channels_and_the_weights_are_arguments_under_any_python() -> None:
    """Python 3.11.2 found (*args, **kwargs), so that three channels were built and weights fetched."""
    arguments = inspect.signature(smp.find_smp_class("smp.Unet")).parameters
    assert {"in_channels", "classes", "encoder_weights", "encoder_name"} <= arguments.keys()
    assert "self" not in arguments


@pytest.mark.smp
@pytest.mark.parametrize("size", [(40, 40), (63, 65), (240, 240)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    for name in ("smp.Unet", "smp.FPN"):
        config = ModelConfig(name, {"encoder_name": "resnet18"})
        network = build_network(config, 4, 3, size).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 4, *size)).shape == (1, 3, *size)


@pytest.mark.smp
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("smp.Uent", {}, "model.name=smp.Uent: no such network; did you mean smp.Unet?"),
        ("smp.unet", {}, "did you mean smp.Unet?"),
        ("smp.Unet", {"encoder_weights": "imagenet"}, "no weights are downloaded; initial=FILE"),
        ("smp.Unet", {"encoder_nam": "resnet18"}, "takes no such option; known: encoder_name"),
        ("smp.Unet", {"encoder_name": "resnet1"}, "Wrong encoder name `resnet1`"),
        ("smp.Unet", {"encoder_name": "tu-nothing"}, "Unknown model"),
        ("smp.Unet", {"encoder_name": "tu-resnet18", "nothing": 1}, "nothing"),
        ("smp.Unet", {"activation": "sigmoid"}, "model.options.activation=sigmoid: cannot be set"),
        ("smp.Unet", {"classes": 3}, "model.options.classes=3: cannot be set here"),
        ("smp.Unet", {"encoder_name": "tu-hf_hub:timm/resnet18"}, "nothing is downloaded"),
        ("smp.Unet", {"encoder_name": "tu-resnet18", "checkpoint_path": "a.pth"}, "no such option"),
        ("smp.DPT", {"encoder_name": "resnet34"}, "Encoder name must start with 'tu-'"),
    ],
)
def test_a_wrong_request_is_refused(name: str, options: dict, reason: str) -> None:
    with pytest.raises(RequestError) as refused:
        build_network(ModelConfig(name, options), 4, 1, (64, 64))
    assert reason in str(refused.value)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smp, "find_spec", lambda name: None)
    with pytest.raises(RequestError) as refused:
        build_network(ModelConfig("smp.Unet", {}), 4, 1, (64, 64))
    assert str(refused.value) == (
        "model.name=smp.Unet: segmentation_models_pytorch is not installed; "
        "pip install 'brainseg-runner[smp]', or in a clone: pip install -e '.[smp]'"
    )


def test_a_library_that_cannot_be_imported_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What torchvision raises beside another build of PyTorch than its own.
    (tmp_path / "segmentation_models_pytorch.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, smp.LIBRARY, raising=False)
    with pytest.raises(RequestError, match="RuntimeError: operator torchvision::nms") as refused:
        build_network(ModelConfig("smp.Unet", {}), 4, 1, (64, 64))
    assert "pip install torchvision --extra-index-url" in str(refused.value)
