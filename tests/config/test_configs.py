"""Every YAML in conf/ is found, composed, validated and built, without being listed here."""

from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from torch import nn

from brainseg import config as schema
from brainseg.config.compose import CONFIGS, compose_job
from brainseg.core.errors import RequestError
from brainseg.models import networks
from brainseg.runs.identity import non_default_settings
from brainseg.training import losses, optimizers

CHOICES = [(path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml"))]
OF_TRAIN = [
    one for one in CHOICES if one[0] != "search"
]  # spaces are no choices of a run: tests/test_search.py
NEEDS = {
    ("split", "file"): ["split.path=x.json"],
    ("split", "all"): None,
    ("data", "hdf5"): ["data.path=x.h5"],
    ("model", "custom"): ["model.name=BasicUNet"],
    ("loss", "custom"): ["loss.name=DiceLoss"],
    ("optimizer", "custom"): ["optimizer.name=rprop"],
    # A single run of a sweep needs a value for each setting that the sweep varies.
    ("sweep", "architecture"): ["model.depth=3", "model.width=16"],
    ("sweep", "devices"): ["device=cpu"],
    ("sweep", "optimization"): ["optimizer=adamw", "scheduler=cosine"],
}


def compose(*overrides: str) -> schema.TrainConfig:
    schema.register_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose_job("train", list(overrides))


@pytest.mark.parametrize(("group", "choice"), OF_TRAIN)
def test_every_choice_composes_and_builds(group: str, choice: str) -> None:
    further = NEEDS.get((group, choice), [])
    if further is None:
        pytest.skip("split=all is for brainseg.evaluate")
    config = compose(f"{'+' if group == 'x' else ''}{group}={choice}", *further)
    if (group, choice) == ("model", "smp"):
        pytest.importorskip("segmentation_models_pytorch", reason="make test-smp builds these")
    with torch.device("meta"):
        model = networks.build_network(config.model, 3, 1, (64, 64))
        assert (
            optimizers.build_optimizer(config.optimizer, model.parameters()).param_groups[0]["lr"]
            == config.optimizer.lr
        )
    assert isinstance(losses.build_loss(config.loss), nn.Module)


@pytest.mark.parametrize("experiment", ["fast", "reference"])
def test_a_recipe_trains_another_network(experiment: str) -> None:
    recipe = compose(f"experiment={experiment}")
    changed = compose("model=attention_unet", f"experiment={experiment}")
    assert changed.model.name == "AttentionUnet" and changed.model.options["strides"] == [2, 2, 2]
    assert (changed.optimizer, changed.batch_size) == (recipe.optimizer, recipe.batch_size)


def test_one_job_of_a_sweep_composes_by_itself_if_nothing_is_left_to_vary(tmp_path: Path) -> None:
    """The command that repeats a job of a sweep names the sweep, and a value for all it varies."""
    config = compose("sweep=architecture", "model.depth=3", "model.width=8")
    assert isinstance(config.model, schema.UNetConfig)
    assert (config.model.depth, config.model.width) == (3, 8)
    assert compose("sweep=devices", "device=cpu").device.on_missing == "skip"
    # A sweep of one's own may vary an option, which needs Hydra's prefix.
    momentum = "++optimizer.options.momentum"
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "momentum.yaml").write_text(
        f"# @package _global_\nhydra: {{sweeper: {{params: {{{momentum}: '0.8,0.9'}}}}}}\n"
    )
    sweep = (f"hydra.searchpath=[file://{tmp_path}]", "sweep=momentum", "optimizer=sgd")
    assert compose(*sweep, f"{momentum}=0.8").optimizer.options["momentum"] == 0.8
    with pytest.raises(RequestError, match=r"varies model\.width; to run a sweep, put -m first"):
        compose("sweep=architecture", "model.depth=3")


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_yaml_opens_with_what_it_is(group: str, choice: str) -> None:
    lines = Path(CONFIGS, group, f"{choice}.yaml").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("# @")).startswith("# ")
    assert len(lines) <= 15


def test_a_stored_config_is_restored() -> None:
    import dataclasses

    for overrides in (
        [],
        ["experiment=reference"],
        ["split=kfold", "split.fold=2", "scheduler=plateau", "model=attention_unet"],
    ):
        config = compose(*overrides)
        assert schema.restore_config(dataclasses.asdict(config)) == config
    stored = dataclasses.asdict(compose("data.channel=FLAIR"))
    stored["data"]["volume"] = stored["data"].pop("channel")
    assert schema.restore_config(stored).data.channel == "FLAIR", "as an earlier version stored it"


def test_the_reference_recipe_is_exact() -> None:
    config = compose("experiment=reference")
    assert (
        non_default_settings(config) | {"data.name": ""}
        == {
            "data.name": "",
            "epochs": 150,
            "split.name": "holdout",
            "model.name": "unet",
            "loss.name": "dice",
            "loss.options": {"smooth": 1.0, "per_sample": False},
            "optimizer.name": "adam",
            "optimizer.lr": 1e-4,
            "scheduler.name": "step",
            "device.name": "auto",
            "tracking.name": "mlflow",
        }
    )  # the U-Net's and the step schedule's own defaults are the reference's: depth 4, width 32, growth 1; a tenth from epoch 30
    assert (config.model.depth, config.model.width, config.model.growth) == (4, 32, 1)
    assert (config.scheduler.epochs, config.scheduler.factor, config.batch_size) == ([30], 0.1, 8)


def test_every_setting_has_its_help() -> None:
    import dataclasses

    def walk(kind: type) -> None:
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help"), f"{kind.__name__}.{field.name}"

    for kind in vars(schema).values():
        if dataclasses.is_dataclass(kind):
            walk(kind)


def test_adam_and_sgd_take_torchs_fused_update_unless_told_otherwise() -> None:
    def fused(name: str, device: str = "cpu", **options: bool) -> bool:
        weights = [torch.nn.Parameter(torch.ones(3, device=device))]
        return bool(
            optimizers.build_optimizer(
                schema.OptimizerConfig(name, lr=0.1, options=options), weights
            )
            .param_groups[0]
            .get("fused")
        )

    assert fused("adam") and fused("adamw") and fused("sgd")
    assert not fused("adamw", foreach=True) and not fused("adamw", fused=False)
    assert not fused("adamw", device="meta") and not fused("rprop")
