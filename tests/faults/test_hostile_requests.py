"""Hostile configs, overrides and names of MONAI: none is executed, each is refused in one line (traps.py)."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.utils import _locate
from traps import Trap

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.config import LossConfig, ModelConfig
from brainseg.core.errors import RequestError
from brainseg.models import networks
from brainseg.runs.job import Outcome
from brainseg.training import losses

TARGETS: dict[
    str, dict[str, Any]
] = {  # what is to be called, with its arguments; <RAN> and <PICKLE> are the trap's paths
    "os.mkdir": {"path": "<RAN>"},
    "os.makedirs": {"name": "<RAN>"},
    "os.system": {"command": "touch <RAN>"},
    "subprocess.Popen": {"args": ["touch", "<RAN>"]},
    "subprocess.os.mkdir": {"path": "<RAN>"},
    "torch.load": {"f": "<PICKLE>", "weights_only": False},
    "torch.optim.optimizer.torch.load": {"f": "<PICKLE>", "weights_only": False},
    "brainseg.models.networks.torch.load": {"f": "<PICKLE>", "weights_only": False},
    "numpy.load": {"file": "<PICKLE>", "allow_pickle": True},
    "pandas.read_pickle": {"filepath_or_buffer": "<PICKLE>"},
    "joblib.load": {"filename": "<PICKLE>"},
    "importlib.import_module": {"name": "evil"},
}

OVERRIDES = """
    model.name=<T> | loss.name=<T> | optimizer.name=<T> | scheduler.name=<T> | split.name=<T> | device.name=<T> | model=monai model.name=<T>
    model=<T> | optimizer=<T> | experiment=<T> | hydra/launcher=<T> | -m hydra/sweeper=<T> | hydra/callbacks=<T> | hydra/job_logging=<T>
    +plugins=[<T>] | <T>=1 | +<T>.a=1 | data.channel=<T> | +_target_=<T> | +model._target_=<T> | +model={_target_:<T>}
    model.options._target_=<T> | +model.options.a={_target_:<T>} | loss.options.reduction={_target_:<T>} | hydra.launcher._target_=<T>
    hydra/launcher={_target_:<T>} | ++hydra.launcher={_target_:<T>,a:b} | -m +hydra.sweeper.x={_target_:<T>} | +hydra.callbacks.a.b=<T>
    +hydra.callbacks.a={_target_:<T>} | +hydra.job_logging.handlers.h={class:<T>} | +hydra.job_logging.formatters.f={class:<T>}
    +hydra.hydra_logging.handlers.h={class:<T>} | --help +hydra.hydra_logging.handlers.h={class:<T>} | hydra.searchpath=[pkg://<T>]
    --cfg=job hydra.searchpath=[pkg://<T>] | +hydra.job.env_set.GIT_EXTERNAL_DIFF=<T>
"""

OTHERS = """
    hydra.searchpath=[pkg://evil] | --cfg=job hydra.searchpath=['pkg://evil'] | -m ++hydra.searchpath=[file://.,pkg://evil] seed=0,1
    --info=searchpath hydra.searchpath=[pkg://evil] | model.name=evil | model.name=evil:main | hydra/launcher=evil
    hydra.launcher._target_=hydra_plugins.evil.Launcher | --experimental-rerun=<PICKLE> | --help --experimental-rerun=<PICKLE>
    --cfg=job --experimental-rerun=<PICKLE> | --info --experimental-rerun=<PICKLE> | --config-path=<PICKLE> | --config-name=<PICKLE>
    from=<PICKLE> | resume=<PICKLE> | data.path=<PICKLE> | split=file split.path=<PICKLE> | -h +model._target_=os.mkdir
    loss=monai loss.name=PerceptualLoss | model=monai model.name=TorchVisionFCModel | model=monai model.name=Transchex
    model=monai model.name=HoVerNet model.options.pretrained_url=http://127.0.0.1:9/x
    model=monai model.name=FlexibleUNet model.options.pretrained=true model.options.backbone=resnet18
"""
CALL, FACTORY = "{_target_: <T>, <ARGUMENTS>}", "{'()': <T>, <ARGUMENTS>}"
GLOBAL, LAUNCHER, SWEEPER = (
    "# @package _global_\n",
    "basic_launcher.BasicLauncher",
    "basic_sweeper.BasicSweeper",
)

EXPERIMENTS = {  # experiment/e.yaml below --config-dir
    "callback": f"hydra: {{callbacks: {{c: {CALL}}}}}",
    "default": "defaults: [{override /hydra/callbacks: e}]",
    "handler": f"hydra: {{job_logging: {{handlers: {{h: {FACTORY}}}, root: {{handlers: [h]}}}}}}",
    "filter": f"hydra: {{hydra_logging: {{filters: {{h: {FACTORY}}}}}}}",
    "environment": "hydra: {job: {env_set: {GIT_EXTERNAL_DIFF: <T>}}}",
    "search path": "hydra: {searchpath: ['pkg://<T>']}",
    "resolver": "epochs: 3\nhydra: {launcher: {x: '${oc.create:${oc.decode:\"{_targ${epochs}_: <T>}\"}}'}}",
    "launcher": f"hydra: {{launcher: {{x: {CALL}}}}}",
}

CHOICES = {  # a request, and the YAML of its choice e
    "hydra/callbacks=e": f"c: {CALL}",
    "hydra/job_logging=e": f"version: 1\nfilters: {{h: {FACTORY}}}\nroot: {{}}",
    "-m seed=0,1 hydra/launcher=e": f"_target_: hydra._internal.core_plugins.{LAUNCHER}\nx: {CALL}",
    "-m seed=0,1 hydra/sweeper=e": f"_target_: hydra._internal.core_plugins.{SWEEPER}\nparams: null\nmax_batch_size: {CALL}",
    "-m seed=1,0 hydra/launcher=e": "_target_: <T>",
    "model=e": "name: unet\n_target_: <T>",
    "model=e epochs=2": "defaults: [/schema/model/any@_here_, _self_]\nname: <T>",
    "optimizer=e": f"name: adam\noptions: {{betas: {CALL}}}",
    "loss=e": "name: !!python/name:<T>",
    "loss=e epochs=2": "name: !!python/object/apply:<T> [<RAN>]",
}


def listed(requests: str) -> list[str]:
    return [
        request.strip() for request in requests.replace("\n", "|").split("|") if request.strip()
    ]


def hostile_requests() -> list[tuple[str, str, dict[str, str]]]:
    """(arguments, target, files below --config-dir) of every hostile request."""
    callback = {"hydra/callbacks/e.yaml": f"c: {CALL}"}
    files = [
        ("experiment=e", {"experiment/e.yaml": GLOBAL + text, **callback})
        for text in EXPERIMENTS.values()
    ]
    files += [
        (f"{page} {request}", made)
        for page in ("--help", "--info", "--cfg=job", "--hydra-help")
        for request, made in files[:4]
    ]
    for request, text in CHOICES.items():
        group = next(word for word in request.split() if word.endswith("=e")).removesuffix("=e")
        files.append((request, {f"{group}/e.yaml": text}))
    found = [(request, target, {}) for request in listed(OVERRIDES) for target in TARGETS]
    found += [(request, target, made) for request, made in files for target in TARGETS]
    return found + [(request, "os.mkdir", {}) for request in listed(OTHERS)]


def ask(arguments: str, target: str, files: dict[str, str], trap: Trap, folder: Path) -> object:
    """The exit code of a request in this process."""
    given = ", ".join(f"{key}: {value}" for key, value in TARGETS[target].items())
    places = {
        "<ARGUMENTS>": given.replace("'", '"'),
        "<T>": target,
        "<RAN>": str(trap.executed),
        "<PICKLE>": str(trap.pickled),
    }

    def filled(text: str) -> str:
        for place, value in places.items():
            text = text.replace(place, value)
        return text

    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(filled(text) + "\n")
    argv = [filled(argument) for argument in arguments.split()] + (
        [f"--config-dir={folder}"] if files else []
    )
    sys.modules.pop("evil", None)
    with trap:
        try:
            run_command("train", lambda *arguments: Outcome("finished"), train.check_request, argv)
        except SystemExit as stop:
            return stop.code
    return "not ended"


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.faults)])
def test_no_hostile_request_is_executed(
    trap: Trap, monai: None, tmp_path: Path, every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = hostile_requests()
    assert len(requests) >= 200
    for number, (arguments, target, files) in enumerate(requests[::every]):
        code = ask(arguments, target, files, trap, tmp_path / str(number))
        said = capsys.readouterr()
        case = f"{arguments} with {target}: exit {code}\n{said.out[-2000:]}\n{said.err}"
        assert not trap.went_off, f"{trap.went_off} by {case}"
        assert code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1, case
        assert os.listdir() == [], case
    print(f"figure: {len(requests[::every])} requests, 0 executed")


@pytest.mark.parametrize("target", TARGETS)
def test_the_targets_would_run(trap: Trap, target: str) -> None:
    fill = {
        key: value.replace("<RAN>", str(trap.executed)).replace("<PICKLE>", str(trap.pickled))
        if isinstance(value, str)
        else value
        for key, value in TARGETS[target].items()
    }
    sys.modules.pop("evil", None)
    with trap:
        try:
            _locate(target)(**fill)
        except Exception as error:  # a pickle of os.mkdir gives None, with which some have trouble
            assert trap.went_off, error
    assert trap.went_off


FETCHERS = (
    "pretrained",
    "pretrained_url",
    "pretrained_path",
    "weights",
    "cache_dir",
    "path_or_repo_id",
    "filename",
    "checkpoint",
    "url",
)


@pytest.mark.faults
def test_no_name_of_monai_fetches_anything(trap: Trap, monai: None) -> None:
    """Every network and loss, as it is by default and with every option that could name a file or an address."""
    import monai.losses
    import monai.networks.nets

    built = 0
    for family, module in (("model", monai.networks.nets), ("loss", monai.losses)):
        for name in sorted(name for name in vars(module) if name[0].isupper()):
            for options in ({}, *({key: "http://127.0.0.1:9/evil"} for key in FETCHERS)):
                with trap, torch.device("meta"):
                    try:
                        if family == "model":
                            networks.build_network(ModelConfig(name, options), 3, 1, (32, 32))
                        else:
                            losses.build_loss(LossConfig(name, options))
                        built += 1
                    except RequestError as error:
                        assert str(error)
                assert not trap.went_off, f"{name} with {options}: {trap.went_off}"
    print(f"figure: {built} built, 0 fetched anything")
    assert built > 50
