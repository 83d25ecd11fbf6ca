"""Hostile checkpoints: none is executed, each is refused in one line (traps.py says how a payload would show)."""

import hashlib
import io
import os
import pickle
import subprocess
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import make_task
from traps import Payload, Trap, refused

from brainseg import evaluate
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    EvaluateConfig,
    HoldoutConfig,
    SchedulerConfig,
    UNetConfig,
    restore_config,
)
from brainseg.data.split import Split
from brainseg.models import networks
from brainseg.runs import checkpoint
from brainseg.runs.resume import restore_run, save_checkpoints
from brainseg.runs.run_folder import RunFolder
from brainseg.training import losses, optimizers
from brainseg.training.build import build_state
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import fit

SPLIT = Split("holdout", ("A",), ("B",), ("C",))


def zipped(
    path: Path, content: Any, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """What torch.save makes of `content`, with some entries of the archive replaced or added."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as made, zipfile.ZipFile(path, "w", compression) as archive:
        prefix = made.namelist()[0].split("/")[0]
        entries = {name.removeprefix(f"{prefix}/"): made.read(name) for name in made.namelist()}
        for name, data in (entries | changed).items():
            archive.writestr(f"{prefix}/{name}", data)


def sealed(path: Path, content: Any, raw: bytes | None = None) -> None:
    """`content` (or the bytes `raw`) as the inner file of a checkpoint whose hash is right."""
    inner = io.BytesIO()
    if raw is None:
        torch.save(content, inner)
        raw = inner.getvalue()
    torch.save(
        {
            "sha256": hashlib.sha256(raw).hexdigest(),
            "payload": torch.frombuffer(bytearray(raw), dtype=torch.uint8),
        },
        path,
    )


def calling(name: str, argument: str, protocol: int = 2) -> bytes:
    """A pickle that calls `module.name` by its opcodes, whatever the module is."""
    module, _, attribute = name.rpartition(".")
    text = argument.encode()
    if protocol == 0:  # INST: no mark, no reduce
        return b"(V" + text + b"\ni" + f"{module}\n{attribute}\n".encode() + b"."
    if protocol == 4:  # STACK_GLOBAL
        short = b"".join(
            b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute)
        )
        return b"\x80\x04" + short + b"\x93X" + len(text).to_bytes(4, "little") + text + b"\x85R."
    return (
        b"\x80\x02c"
        + f"{module}\n{attribute}\n".encode()
        + b"X"
        + len(text).to_bytes(4, "little")
        + text
        + b"\x85R."
    )


CALLS = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.storage._load_from_bytes",
    "torch.serialization.add_safe_globals",
    "numpy.load",
    "pandas.read_pickle",
    "joblib.load",
    "torch.optim.optimizer.torch.load",
    "runpy.run_path",
    "pickle.loads",
]


class EvilTensor(torch.Tensor):
    """Its pickle is a call."""

    payload: Payload

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.payload.__reduce__()


def malicious(trap: Trap, sound: dict[str, Any]) -> dict[str, Callable[[Path], None]]:
    """Writers of malicious checkpoints by name; `sound` is the content of a true one."""
    evil, shell = Payload(os.mkdir, str(trap.executed)), f"touch {trap.executed}"
    tensor = torch.zeros(2).as_subclass(EvilTensor)
    tensor.payload = evil
    hooked = Payload(
        torch._utils._rebuild_tensor_v2,
        torch.zeros(1).untyped_storage(),
        0,
        (1,),
        (1,),
        False,
        OrderedDict(a=evil),
    )
    typed = Payload(
        torch._tensor._rebuild_from_type_v2, os.mkdir, torch.Tensor, (str(trap.executed),), None
    )
    parameter = Payload(
        torch._utils._rebuild_parameter_with_state,
        torch.zeros(1),
        False,
        OrderedDict(),
        {"a": evil},
    )
    deep: Any = evil
    for _ in range(60):
        deep = [{"a": deep}]
    writers: dict[str, Callable[[Path], None]] = {}
    outer = {
        "bare": evil,
        "list": [evil],
        "tuple": (1, evil),
        "ordered": OrderedDict(a=evil),
        "counter": Counter({evil: 1}),
        "sha256": {"sha256": evil, "payload": torch.zeros(3, dtype=torch.uint8)},
        "payload": {"sha256": "0", "payload": evil},
        "key": {evil: 1, "payload": torch.zeros(1)},
        "state_dict": {"state_dict": evil},
        "weight": {"state_dict": {"a.weight": evil}},
        "subclass": {"sha256": "0", "payload": tensor},
        "hooks": {"state_dict": {"a": hooked}},
        "typed": {"state_dict": {"a": typed}},
        "parameter": {"state_dict": {"a": parameter}},
        "shell": Payload(os.system, shell),
        "eval": Payload(eval, "__import__('evil')"),
        "popen": Payload(subprocess.Popen, ["touch", str(trap.executed)]),
        "import": Payload(__import__, "evil"),
    }
    for name, content in outer.items():
        writers[f"outer {name}"] = lambda path, content=content: torch.save(content, path)
    for key in (
        "model",
        "optimizer",
        "history",
        "config",
        "split",
        "classes",
        "scaler",
        "plateau",
        "versions",
        "epoch",
    ):
        writers[f"inner {key}"] = lambda path, key=key: sealed(path, sound | {key: evil})
    inner = {
        "key": sound | {evil: 1},
        "nested": sound | {"history": deep},
        "weight": sound | {"model": {"a": tensor}},
        "options": sound
        | {"config": sound["config"] | {"model": {"name": "unet", "options": {"a": evil}}}},
        "list": [evil],
        "bare": evil,
    }
    for name, content in inner.items():
        writers[f"inner {name}"] = lambda path, content=content: sealed(path, content)
    for call in CALLS:
        raw = calling(call, shell if "system" in call else str(trap.pickled))
        writers[f"zip entry {call}"] = lambda path, raw=raw: zipped(
            path, {"a": torch.zeros(1)}, {"data.pkl": raw}
        )
    for protocol in (0, 2, 4):
        raw = calling("os.system", shell, protocol)
        writers[f"pickle {protocol}"] = lambda path, raw=raw: path.write_bytes(raw)
        writers[f"sealed pickle {protocol}"] = lambda path, raw=raw: sealed(path, None, raw)
    writers["legacy"] = lambda path: torch.save(evil, path, _use_new_zipfile_serialization=False)
    writers["pickle of a dict"] = lambda path: path.write_bytes(
        pickle.dumps({"sha256": evil, "payload": evil})
    )
    writers["traversal"] = lambda path: zipped(
        path, evil, {"../../executed/x": b"", "data.pkl": calling("os.system", shell)}
    )
    writers["deflated"] = lambda path: zipped(path, evil, {"x": b"0" * 10**7}, zipfile.ZIP_DEFLATED)
    writers["torchscript"] = lambda path: torch.jit.save(
        torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), str(path)
    )
    return writers


@pytest.fixture
def saved(phantom_file: Path, tmp_path: Path) -> tuple[RunFolder, TrainingContext]:
    """A run of one epoch with its last.pt."""
    task = make_task(
        phantom_file,
        scheduler=SchedulerConfig("none"),
        epochs=1,
        data=DataConfig(name="hdf5", path=str(phantom_file)),
    )
    with RunFolder(tmp_path / "r").active(
        {"name": "n", "overrides": []}, task.config, SPLIT
    ) as folder:
        fit(
            build_state(task),
            task,
            Callbacks(
                after_epoch=lambda state, improved: save_checkpoints(
                    folder, state, task, SPLIT, improved
                )
            ),
        )
    folder.best.unlink()
    return folder, task


def readers(folder: RunFolder, task: TrainingContext) -> dict[str, Callable[[], Any]]:
    """Every road from a checkpoint into the program."""
    data = DataConfig(name="hdf5", path=task.config.data.path)
    settings = EvaluateConfig(
        checkpoint=str(folder.last),
        output=str(folder.path / "out"),
        data=data,
        split=HoldoutConfig(),
        model=UNetConfig(),
        device=DeviceConfig("cpu", "float32"),
    )
    return {
        "load": lambda: checkpoint.load(folder.last),
        "load_weights": lambda: checkpoint.load_weights(folder.last),
        "evaluate": lambda: evaluate.run(settings),
        "resume": lambda: restore_run(build_state(task), folder, task),
    }


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.faults)])
def test_no_malicious_checkpoint_is_executed(
    saved: tuple[RunFolder, TrainingContext], trap: Trap, every: int
) -> None:
    folder, task = saved
    writers = malicious(trap, checkpoint.load(folder.last))
    assert len(writers) >= 50
    for name, write in list(writers.items())[::every]:
        write(folder.last)
        for road, read in readers(folder, task).items():
            with trap:
                assert refused(read), f"{name} by {road}"
            assert not trap.went_off, f"{name} by {road}"
    print(
        f"figure: {len(writers) // every} checkpoints by {len(readers(folder, task))} roads, 0 executed"
    )


def test_the_payloads_of_the_checkpoints_would_run(
    trap: Trap, saved: tuple[RunFolder, TrainingContext]
) -> None:
    path = saved[0].last
    for name in (
        "outer bare",
        "outer hooks",
        "zip entry os.system",
        "pickle 0",
        "pickle 4",
        "legacy",
    ):
        malicious(trap, checkpoint.load(path) if name == "outer bare" else {"config": {}})[name](
            path
        )
        with trap:
            try:
                torch.load(path, weights_only=False)
            except Exception as error:  # the payload has run by then, or has not
                trap.heard.append(str(error)) if trap.executed.exists() else None
        assert trap.went_off, name
        trap.heard.clear()
        trap.executed.exists() and (
            trap.executed.rmdir() if trap.executed.is_dir() else trap.executed.unlink()
        )


def at(content: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of nested dicts with one value replaced."""
    key, _, rest = dotted.partition(".")
    return content | {key: at(content.get(key) or {}, rest, value) if rest else value}


HOSTILE_CONFIGS: list[tuple[str, Any]] = [
    *[
        (f"{family}.name", name)
        for family in ("model", "loss", "optimizer")
        for name in (
            "os.system",
            "torch.load",
            "torch.optim.optimizer.torch.load",
            "__class__",
            "",
            "../../x",
            "Optimizer",
            "Module",
            5,
            None,
            [],
        )
    ],
    *[
        (f"{family}.options", options)
        for family in ("model", "loss", "optimizer")
        for options in (
            {"_target_": "os.mkdir", "path": "x"},
            {"a": {"_target_": "os.mkdir"}},
            {"__class__": "x"},
            "x",
            [1],
            {"x": "${oc.env:HOME}"},
        )
    ],
    ("model.depth", 10**9),
    ("model.depth", -1),
    ("model.depth", "x"),
    ("model.width", 1e308),
    ("model.width", 10**30),
    ("model", 5),
    ("model", []),
    ("model", None),
    ("optimizer.lr", "nan"),
    ("optimizer.lr", float("inf")),
    ("optimizer.lr", [1]),
    ("epochs", 0),
    ("epochs", "many"),
    ("seed", -1),
    ("seed", 10**400),
    ("max_minutes", float("inf")),
    ("_target_", "os.mkdir"),
    ("hydra", {"callbacks": {"a": {"_target_": "os.mkdir"}}}),
    ("unknown", 1),
    ("device.threads", 10**12),
    ("output", "${oc.env:HOME}"),
    ("scheduler.name", "torch.load"),
    ("split.name", "x"),
    ("data.context", 10**9),
    ("inference.threshold", 7),
]


def test_no_hostile_config_in_a_checkpoint_is_obeyed(
    saved: tuple[RunFolder, TrainingContext], trap: Trap, monai: None
) -> None:
    config = asdict(saved[1].config)

    def rebuild(stored: Any) -> None:
        settings = restore_config(stored)
        with torch.device("meta"):
            network = networks.build_network(settings.model, 3, 1, (32, 32))
        optimizers.build_optimizer(settings.optimizer, network.parameters())
        losses.build_loss(settings.loss)

    rebuild(config)
    cases = [(dotted, at(config, dotted, value)) for dotted, value in HOSTILE_CONFIGS]
    cases += [("all of it", case) for case in (5, None, [], "x", {1: 2})]
    for dotted, stored in cases:
        with trap:
            assert refused(lambda stored=stored: rebuild(stored)), f"{dotted}: {stored}"
        assert not trap.went_off, dotted


HOSTILE_CONTENT = {  # well-formed, and not what a run writes; by the road that reads it
    "evaluate": {
        "model": [
            5,
            None,
            [],
            {},
            {"a": 5},
            {"layers.0.conv1.weight": torch.zeros(1)},
            {1: torch.zeros(1)},
        ],
        "config": [5, [], {"model": {"name": "os.system"}}, {"data": {"volume": "../../x"}}],
        "split": [
            5,
            [],
            {},
            {"train": 5},
            {"name": "x", "train": [1], "validation": [], "test": [], "sha256": "x"},
        ],
        "classes": [5, None, ["a"] * 1000, {"a": 1}],
        "uid": [torch.zeros(1)],
    },
    "resume": {
        "model": [5, [], {}, {"a": 5}],
        "config": [5, [], {"epochs": "many"}, {"scheduler": {"name": "os.system"}}],
        "optimizer": [5, {}, {"state": 5, "param_groups": 5}],
        "history": [5, [5], {"a": 1}],
        "epoch": ["x", None],
        "step": ["x", -1],
        "total_steps": ["x"],
        "scaler": [5],
        "threads": ["x"],
    },
}


@pytest.mark.parametrize(
    ("road", "key"), [(road, key) for road, keys in HOSTILE_CONTENT.items() for key in keys]
)
def test_well_formed_nonsense_is_refused_too(
    saved: tuple[RunFolder, TrainingContext], road: str, key: str
) -> None:
    folder, task = saved
    sound = checkpoint.load(folder.last)
    for value in HOSTILE_CONTENT[road][key]:
        checkpoint.save(folder.last, sound | {key: value})
        assert refused(readers(folder, task)[road]), f"{key}={value!r}"


def test_impossible_tensors_are_refused(saved: tuple[RunFolder, TrainingContext]) -> None:
    folder, task = saved
    digest = hashlib.sha256(b"").hexdigest()
    byte = torch.zeros(1, dtype=torch.uint8)
    for payload in (
        byte.expand(10**13),
        byte.to_sparse(),
        torch.empty(5, dtype=torch.uint8, device="meta"),
        byte[None],
        byte.float(),
        5,
    ):
        torch.save({"sha256": digest, "payload": payload}, folder.last)
        for road, read in readers(folder, task).items():
            assert refused(read), f"{road} took {payload}"
    for sha in (torch.zeros(3), [digest], None, b"x"):
        torch.save({"sha256": sha, "payload": byte}, folder.last)
        assert all(refused(read) for read in readers(folder, task).values()), sha
    sealed(folder.last, [1, 2])
    assert all(refused(read) for read in readers(folder, task).values()), "a list is no checkpoint"
