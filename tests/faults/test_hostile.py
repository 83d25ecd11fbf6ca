"""Hostile checkpoints, configs and requests: none is executed, each is refused in one line.

A trap goes off when a payload runs: its folder `executed` appears, or Python's audit reports what a payload needs (a process,
a connection, an unpickled name, the import of `evil`). That the traps do go off is tested first.
"""

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hydra._internal.utils import _locate
from test_engine import Task, make_task
from test_store import cohort
from test_tracking import write_run

from brainseg import build, cli, evaluate, train
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    EvaluateConfig,
    HoldoutConfig,
    LossConfig,
    ModelConfig,
    SchedulerConfig,
    UNetConfig,
    restore,
)
from brainseg.data.split import Split
from brainseg.data.store import Store
from brainseg.data.store_writer import write_store
from brainseg.errors import DataError, RequestError
from brainseg.records import checkpoint
from brainseg.records.predictions import Prediction, read_predictions, write_predictions
from brainseg.records.run import Outcome, RunFolder
from brainseg.records.saving import load_into, save
from brainseg.records.tracking import replicate
from brainseg.train import new_state
from brainseg.training.engine import fit
from brainseg.training.task import Hooks

REFUSED = (DataError, RequestError)
AUDITED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class", "socket.connect",
           "socket.getaddrinfo", "urllib.Request", "webbrowser.open")  # fmt: skip
SPLIT = Split("holdout", ("A",), ("B",), ("C",))


class Trap:
    """Where a payload shows that it ran."""

    armed: "Trap | None" = None

    def __init__(self, folder: Path) -> None:
        self.executed, self.pickled, self.heard = folder / "executed", folder / "evil.pickle", list[str]()
        self.pickled.write_bytes(pickle.dumps(Payload(os.mkdir, str(self.executed))))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(self.executed)!r})\n")

    def __enter__(self) -> "Trap":
        Trap.armed = self
        return self

    def __exit__(self, *error: object) -> None:
        Trap.armed = None

    @property
    def went_off(self) -> list[str]:
        return self.heard + (["the payload ran"] if self.executed.exists() else [])


def _listen(event: str, arguments: tuple) -> None:
    if Trap.armed is not None and (event in AUDITED or (event == "import" and str(arguments[0]).split(".")[0] == "evil")):
        Trap.armed.heard.append(f"{event} {arguments[:2]}"[:200])


sys.addaudithook(_listen)  # for the whole process: Python knows no way to take one away


class Payload:
    """Pickles as a call."""

    def __init__(self, call: Callable, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    folder = tmp_path / "trap"
    folder.mkdir()
    (tmp_path / "here").mkdir()
    before = os.getcwd()
    os.chdir(tmp_path / "here")
    sys.path.insert(0, str(folder))
    yield Trap(folder)
    sys.path.remove(str(folder))
    os.chdir(before)


@pytest.fixture(scope="module")
def monai() -> None:
    """Imported beforehand: matplotlib, which comes with it, makes its folders then."""
    import monai.losses
    import monai.networks.nets  # noqa: F401


# --- checkpoints


def zipped(path: Path, content: Any, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
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
    torch.save({"sha256": hashlib.sha256(raw).hexdigest(), "payload": torch.frombuffer(bytearray(raw), dtype=torch.uint8)}, path)


def calling(name: str, argument: str, protocol: int = 2) -> bytes:
    """A pickle that calls `module.name` by its opcodes, whatever the module is."""
    module, _, attribute = name.rpartition(".")
    text = argument.encode()
    if protocol == 0:  # INST: no mark, no reduce
        return b"(V" + text + b"\ni" + f"{module}\n{attribute}\n".encode() + b"."
    if protocol == 4:  # STACK_GLOBAL
        short = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute))
        return b"\x80\x04" + short + b"\x93X" + len(text).to_bytes(4, "little") + text + b"\x85R."
    return b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"X" + len(text).to_bytes(4, "little") + text + b"\x85R."


CALLS = ["os.system", "posix.system", "builtins.eval", "builtins.exec", "builtins.__import__", "torch.load", "torch.hub.load",
         "torch.jit.load", "torch.storage._load_from_bytes", "torch.serialization.add_safe_globals", "numpy.load",
         "pandas.read_pickle", "joblib.load", "torch.optim.optimizer.torch.load", "runpy.run_path", "pickle.loads"]  # fmt: skip


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
    hooked = Payload(torch._utils._rebuild_tensor_v2, torch.zeros(1).untyped_storage(), 0, (1,), (1,), False, OrderedDict(a=evil))
    typed = Payload(torch._tensor._rebuild_from_type_v2, os.mkdir, torch.Tensor, (str(trap.executed),), None)
    parameter = Payload(torch._utils._rebuild_parameter_with_state, torch.zeros(1), False, OrderedDict(), {"a": evil})
    deep: Any = evil
    for _ in range(60):
        deep = [{"a": deep}]
    writers: dict[str, Callable[[Path], None]] = {}
    outer = {
        "bare": evil, "list": [evil], "tuple": (1, evil), "ordered": OrderedDict(a=evil), "counter": Counter({evil: 1}), "sha256": {
            "sha256": evil, "payload": torch.zeros(3, dtype=torch.uint8)}, "payload": {"sha256": "0", "payload": evil}, "key": {
            evil: 1, "payload": torch.zeros(1)}, "state_dict": {"state_dict": evil}, "weight": {"state_dict": {"a.weight": evil}},
        "subclass": {"sha256": "0", "payload": tensor}, "hooks": {"state_dict": {"a": hooked}}, "typed": {"state_dict": {"a": typed}},
        "parameter": {"state_dict": {"a": parameter}}, "shell": Payload(os.system, shell), "eval": Payload(eval, "__import__('evil')"),
        "popen": Payload(subprocess.Popen, ["touch", str(trap.executed)]), "import": Payload(__import__, "evil"),
    }  # fmt: skip
    for name, content in outer.items():
        writers[f"outer {name}"] = lambda path, content=content: torch.save(content, path)
    for key in ("model", "optimizer", "history", "config", "split", "classes", "scaler", "plateau", "versions", "epoch"):
        writers[f"inner {key}"] = lambda path, key=key: sealed(path, sound | {key: evil})
    inner = {
        "key": sound | {evil: 1}, "nested": sound | {"history": deep}, "weight": sound | {"model": {"a": tensor}},
        "options": sound | {"config": sound["config"] | {"model": {"name": "unet", "options": {"a": evil}}}}, "list": [evil], "bare": evil,
    }  # fmt: skip
    for name, content in inner.items():
        writers[f"inner {name}"] = lambda path, content=content: sealed(path, content)
    for call in CALLS:
        raw = calling(call, shell if "system" in call else str(trap.pickled))
        writers[f"zip entry {call}"] = lambda path, raw=raw: zipped(path, {"a": torch.zeros(1)}, {"data.pkl": raw})
    for protocol in (0, 2, 4):
        raw = calling("os.system", shell, protocol)
        writers[f"pickle {protocol}"] = lambda path, raw=raw: path.write_bytes(raw)
        writers[f"sealed pickle {protocol}"] = lambda path, raw=raw: sealed(path, None, raw)
    writers["legacy"] = lambda path: torch.save(evil, path, _use_new_zipfile_serialization=False)
    writers["pickle of a dict"] = lambda path: path.write_bytes(pickle.dumps({"sha256": evil, "payload": evil}))
    writers["traversal"] = lambda path: zipped(path, evil, {"../../executed/x": b"", "data.pkl": calling("os.system", shell)})
    writers["deflated"] = lambda path: zipped(path, evil, {"x": b"0" * 10**7}, zipfile.ZIP_DEFLATED)
    writers["torchscript"] = lambda path: torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), str(path))
    return writers


@pytest.fixture
def saved(phantom_file: Path, tmp_path: Path) -> tuple[RunFolder, Task]:
    """A run of one epoch with its last.pt."""
    task = make_task(phantom_file, scheduler=SchedulerConfig("none"), epochs=1, data=DataConfig(name="hdf5", path=str(phantom_file)))
    with RunFolder(tmp_path / "r").active({"name": "n", "overrides": []}, task.config, SPLIT) as folder:
        fit(new_state(task), task, Hooks(after_epoch=lambda state, improved: save(folder, state, task, SPLIT, improved)))
    folder.best.unlink()
    return folder, task


def readers(folder: RunFolder, task: Task) -> dict[str, Callable[[], Any]]:
    """Every road from a checkpoint into the program."""
    data = DataConfig(name="hdf5", path=task.config.data.path)
    settings = EvaluateConfig(checkpoint=str(folder.last), output=str(folder.path / "out"), data=data, split=HoldoutConfig(),
                              model=UNetConfig(), device=DeviceConfig("cpu", "float32"))  # fmt: skip
    return {
        "load": lambda: checkpoint.load(folder.last),
        "load_weights": lambda: checkpoint.load_weights(folder.last),
        "evaluate": lambda: evaluate.run(settings),
        "resume": lambda: load_into(new_state(task), folder, task),
    }


def refused(read: Callable[[], Any]) -> str:
    """The one line that says why; "" if it was not refused."""
    try:
        read()
    except REFUSED as error:
        return "" if "\n" in str(error) else str(error)
    return ""


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.faults)])
def test_no_malicious_checkpoint_is_executed(saved: tuple[RunFolder, Task], trap: Trap, every: int) -> None:
    folder, task = saved
    writers = malicious(trap, checkpoint.load(folder.last))
    assert len(writers) >= 50
    for name, write in list(writers.items())[::every]:
        write(folder.last)
        for road, read in readers(folder, task).items():
            with trap:
                assert refused(read), f"{name} by {road}"
            assert not trap.went_off, f"{name} by {road}"
    print(f"figure: {len(writers) // every} checkpoints by {len(readers(folder, task))} roads, 0 executed")


def test_the_payloads_of_the_checkpoints_would_run(trap: Trap, saved: tuple[RunFolder, Task]) -> None:
    path = saved[0].last
    for name in ("outer bare", "outer hooks", "zip entry os.system", "pickle 0", "pickle 4", "legacy"):
        malicious(trap, checkpoint.load(path) if name == "outer bare" else {"config": {}})[name](path)
        with trap:
            try:
                torch.load(path, weights_only=False)
            except Exception as error:  # the payload has run by then, or has not
                trap.heard.append(str(error)) if trap.executed.exists() else None
        assert trap.went_off, name
        trap.heard.clear()
        trap.executed.exists() and (trap.executed.rmdir() if trap.executed.is_dir() else trap.executed.unlink())


def at(content: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of nested dicts with one value replaced."""
    key, _, rest = dotted.partition(".")
    return content | {key: at(content.get(key) or {}, rest, value) if rest else value}


HOSTILE_CONFIGS: list[tuple[str, Any]] = [
    *[(f"{family}.name", name) for family in ("model", "loss", "optimizer") for name in (
        "os.system", "torch.load", "torch.optim.optimizer.torch.load", "__class__", "", "../../x", "Optimizer", "Module", 5, None, []
    )],
    *[(f"{family}.options", options) for family in ("model", "loss", "optimizer") for options in (
        {"_target_": "os.mkdir", "path": "x"}, {"a": {"_target_": "os.mkdir"}}, {"__class__": "x"}, "x", [1], {"x": "${oc.env:HOME}"}
    )],
    ("model.depth", 10**9), ("model.depth", -1), ("model.depth", "x"), ("model.width", 1e308), ("model.width", 10**30),
    ("model", 5), ("model", []), ("model", None), ("optimizer.lr", "nan"), ("optimizer.lr", float("inf")), ("optimizer.lr", [1]),
    ("epochs", 0), ("epochs", "many"), ("seed", -1), ("seed", 10**400), ("max_minutes", float("inf")),
    ("_target_", "os.mkdir"), ("hydra", {"callbacks": {"a": {"_target_": "os.mkdir"}}}), ("unknown", 1), ("device.threads", 10**12),
    ("output", "${oc.env:HOME}"), ("scheduler.name", "torch.load"), ("split.name", "x"), ("data.context", 10**9),
    ("inference.threshold", 7),
]  # fmt: skip


def test_no_hostile_config_in_a_checkpoint_is_obeyed(saved: tuple[RunFolder, Task], trap: Trap, monai: None) -> None:
    config = asdict(saved[1].config)

    def rebuild(stored: Any) -> None:
        settings = restore(stored)
        with torch.device("meta"):
            network = build.model(settings.model, 3, 1, (32, 32))
        build.optimizer(settings.optimizer, network.parameters())
        build.loss(settings.loss)

    rebuild(config)
    cases = [(dotted, at(config, dotted, value)) for dotted, value in HOSTILE_CONFIGS]
    cases += [("all of it", case) for case in (5, None, [], "x", {1: 2})]
    for dotted, stored in cases:
        with trap:
            assert refused(lambda stored=stored: rebuild(stored)), f"{dotted}: {stored}"
        assert not trap.went_off, dotted


HOSTILE_CONTENT = {  # well-formed, and not what a run writes; by the road that reads it
    "evaluate": {
        "model": [5, None, [], {}, {"a": 5}, {"layers.0.conv1.weight": torch.zeros(1)}, {1: torch.zeros(1)}],
        "config": [5, [], {"model": {"name": "os.system"}}, {"data": {"volume": "../../x"}}],
        "split": [5, [], {}, {"train": 5}, {"name": "x", "train": [1], "validation": [], "test": [], "sha256": "x"}],
        "classes": [5, None, ["a"] * 1000, {"a": 1}],
        "uid": [torch.zeros(1)],
    },
    "resume": {
        "model": [5, [], {}, {"a": 5}],
        "config": [5, [], {"epochs": "many"}, {"scheduler": {"name": "os.system"}}],
        "optimizer": [5, {}, {"state": 5, "param_groups": 5}],
        "history": [5, [5], {"a": 1}],
        "epoch": ["x", None], "step": ["x", -1], "total_steps": ["x"], "scaler": [5], "threads": ["x"],
    },
}  # fmt: skip


@pytest.mark.parametrize(("road", "key"), [(road, key) for road, keys in HOSTILE_CONTENT.items() for key in keys])
def test_well_formed_nonsense_is_refused_too(saved: tuple[RunFolder, Task], road: str, key: str) -> None:
    folder, task = saved
    sound = checkpoint.load(folder.last)
    for value in HOSTILE_CONTENT[road][key]:
        checkpoint.save(folder.last, sound | {key: value})
        assert refused(readers(folder, task)[road]), f"{key}={value!r}"


def test_impossible_tensors_are_refused(saved: tuple[RunFolder, Task]) -> None:
    folder, task = saved
    digest = hashlib.sha256(b"").hexdigest()
    byte = torch.zeros(1, dtype=torch.uint8)
    for payload in (byte.expand(10**13), byte.to_sparse(), torch.empty(5, dtype=torch.uint8, device="meta"), byte[None], byte.float(), 5):
        torch.save({"sha256": digest, "payload": payload}, folder.last)
        for road, read in readers(folder, task).items():
            assert refused(read), f"{road} took {payload}"
    for sha in (torch.zeros(3), [digest], None, b"x"):
        torch.save({"sha256": sha, "payload": byte}, folder.last)
        assert all(refused(read) for read in readers(folder, task).values()), sha
    sealed(folder.last, [1, 2])
    assert all(refused(read) for read in readers(folder, task).values()), "a list is no checkpoint"


# --- data files


def _replaced(name: str, array: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=array, **options) if not isinstance(array, tuple) else file.create_dataset(name, *array, **options)

    return change


def _linked(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["images"]
        file["images"] = link

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((9, 3, 8, 8), np.uint8)
    layout[:] = h5py.VirtualSource("nowhere.h5", "images", shape=(9, 3, 8, 8))
    del file["images"]
    file.create_virtual_dataset("images", layout)


def _endless(file: h5py.File) -> None:
    """Rows without end in a file of a few kilobytes."""
    for name in ("images", "masks", "slice_number", "tumour_pixels"):
        shape, kind = file[name].shape[1:], file[name].dtype
        del file[name]
        file.create_dataset(name, (2**40, *shape), kind, chunks=True)


HOSTILE_FILES: dict[str, Callable[[h5py.File], None]] = {  # each is whole and well-formed
    "another file's": _linked(h5py.ExternalLink("other.h5", "images")),
    "dangling": _linked(h5py.SoftLink("/nothing")),
    "virtual": _virtual,
    "raw bytes of any file": _replaced("images", ((9, 3, 8, 8), np.uint8), external=[("/etc/hostname", 0, 9 * 3 * 64)]),
    "never written": _replaced("images", ((9, 3, 8, 8), np.uint8), chunks=(1, 3, 8, 8)),
    "insane size": _replaced("images", ((9, 3, 2**31, 2**31), np.uint8), chunks=(1, 3, 8, 8)),
    "endless": _endless,
    "group": lambda file: (file.__delitem__("images"), file.create_group("images")),
    "empty": _replaced("images", h5py.Empty("u1")),
    "names are numbers": _replaced("volumes", np.arange(3)),
    "names are objects": _replaced("volumes", np.array(["a", "b", "c"], object), dtype=h5py.string_dtype()),
    "names with escapes": _replaced("volumes", np.array([b"a\nb", b"\x1b[31m", b"c"], "S10")),
    "names of no encoding": _replaced("volumes", np.array([b"\xff\xfe", b"b", b"c"], "S10")),
    "fractional rows": _replaced("first_slice", np.array([0, 2, 5, 9.0])),
    "records": _replaced("slice_number", np.zeros(9, [("a", "i4")])),
    "no number": _replaced("low", np.full((3, 3), np.nan, np.float32)),
    "text for numbers": _replaced("low", np.array([[b"a"] * 3] * 3)),
    "many schemas": lambda file: file.attrs.__setitem__("schema", np.array([1, 2])),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_no_hostile_data_file_is_opened(tmp_path: Path, kind: str) -> None:
    write_store(tmp_path / "other.h5", *cohort())
    path = Path(shutil.copy(tmp_path / "other.h5", tmp_path / "lgg.h5"))
    with h5py.File(path, "r+") as file:
        HOSTILE_FILES[kind](file)
    assert str(path) in refused(lambda: Store(path))


HOSTILE_PREDICTIONS: dict[str, Callable[[h5py.File], None]] = {
    "raw bytes of any file": _replaced("masks", ((2, 4, 4), np.uint8), external=[("/etc/hostname", 0, 32)]),
    "another file's": lambda file: (file.__delitem__("masks"), file.__setitem__("masks", h5py.ExternalLink("other.h5", "images"))),
    "missing": lambda file: file.__delitem__("roles"),
    "names are numbers": _replaced("volumes", np.arange(1)),
    "names of no encoding": _replaced("volumes", np.array([b"\xff\xfe"], "S10")),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_PREDICTIONS)
def test_no_hostile_predictions_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "predictions.h5"
    write_predictions(path, [Prediction("v", "test", np.ones((2, 4, 4), np.uint8), None)])
    assert read_predictions(path, "v").mask.sum() == 32
    with h5py.File(path, "r+") as file:
        HOSTILE_PREDICTIONS[kind](file)
    assert str(path) in refused(lambda: read_predictions(path, "v"))


@pytest.mark.faults
@pytest.mark.parametrize("name", ["code.diff", "config.yaml", "pictures/curves.png", "checkpoints/best.pt"])
def test_sync_sends_no_file_that_a_link_in_a_run_folder_names(tmp_path: Path, name: str) -> None:
    """A run folder from elsewhere names the server too: it would fetch any file of its reader."""
    folder = write_run(tmp_path / "r", f"sqlite:///{tmp_path / 'mlflow.db'}", state="finished")
    (tmp_path / "private").write_text("note: private")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="link"):
        replicate(folder)
    sent = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert not any("private" in path.read_text() for path in sent)


# --- configs and overrides

TARGETS: dict[str, dict[str, Any]] = {  # what is to be called, with its arguments; <RAN> and <PICKLE> are the trap's paths
    "os.mkdir": {"path": "<RAN>"},
    "os.makedirs": {"name": "<RAN>"},
    "os.system": {"command": "touch <RAN>"},
    "subprocess.Popen": {"args": ["touch", "<RAN>"]},
    "subprocess.os.mkdir": {"path": "<RAN>"},
    "torch.load": {"f": "<PICKLE>", "weights_only": False},
    "torch.optim.optimizer.torch.load": {"f": "<PICKLE>", "weights_only": False},
    "brainseg.build.torch.load": {"f": "<PICKLE>", "weights_only": False},
    "numpy.load": {"file": "<PICKLE>", "allow_pickle": True},
    "pandas.read_pickle": {"filepath_or_buffer": "<PICKLE>"},
    "joblib.load": {"filename": "<PICKLE>"},
    "importlib.import_module": {"name": "evil"},
}
OVERRIDES = """
    model.name=<T> | loss.name=<T> | optimizer.name=<T> | scheduler.name=<T> | split.name=<T> | device.name=<T> | model=monai model.name=<T>
    model=<T> | optimizer=<T> | experiment=<T> | hydra/launcher=<T> | -m hydra/sweeper=<T> | hydra/callbacks=<T> | hydra/job_logging=<T>
    +plugins=[<T>] | <T>=1 | +<T>.a=1 | data.volume=<T> | +_target_=<T> | +model._target_=<T> | +model={_target_:<T>}
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
GLOBAL, LAUNCHER, SWEEPER = "# @package _global_\n", "basic_launcher.BasicLauncher", "basic_sweeper.BasicSweeper"
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
    return [request.strip() for request in requests.replace("\n", "|").split("|") if request.strip()]


def hostile_requests() -> list[tuple[str, str, dict[str, str]]]:
    """(arguments, target, files below --config-dir) of every hostile request."""
    callback = {"hydra/callbacks/e.yaml": f"c: {CALL}"}
    files = [("experiment=e", {"experiment/e.yaml": GLOBAL + text, **callback}) for text in EXPERIMENTS.values()]
    files += [(f"{page} {request}", made) for page in ("--help", "--info", "--cfg=job", "--hydra-help") for request, made in files[:4]]
    for request, text in CHOICES.items():
        group = next(word for word in request.split() if word.endswith("=e")).removesuffix("=e")
        files.append((request, {f"{group}/e.yaml": text}))
    found = [(request, target, {}) for request in listed(OVERRIDES) for target in TARGETS]
    found += [(request, target, made) for request, made in files for target in TARGETS]
    return found + [(request, "os.mkdir", {}) for request in listed(OTHERS)]


def ask(arguments: str, target: str, files: dict[str, str], trap: Trap, folder: Path) -> object:
    """The exit code of a request in this process."""
    given = ", ".join(f"{key}: {value}" for key, value in TARGETS[target].items())
    places = {"<ARGUMENTS>": given.replace("'", '"'), "<T>": target, "<RAN>": str(trap.executed), "<PICKLE>": str(trap.pickled)}

    def filled(text: str) -> str:
        for place, value in places.items():
            text = text.replace(place, value)
        return text

    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(filled(text) + "\n")
    argv = [filled(argument) for argument in arguments.split()] + ([f"--config-dir={folder}"] if files else [])
    sys.modules.pop("evil", None)
    with trap:
        try:
            cli.main("train", lambda *arguments: Outcome("finished"), train.check, argv)
        except SystemExit as stop:
            return stop.code
    return "not ended"


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.faults)])
def test_no_hostile_request_is_executed(trap: Trap, monai: None, tmp_path: Path, every: int, capsys: pytest.CaptureFixture[str]) -> None:
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
    fill = {key: value.replace("<RAN>", str(trap.executed)).replace("<PICKLE>", str(trap.pickled)) if isinstance(value, str) else value
            for key, value in TARGETS[target].items()}  # fmt: skip
    sys.modules.pop("evil", None)
    with trap:
        try:
            _locate(target)(**fill)
        except Exception as error:  # a pickle of os.mkdir gives None, with which some have trouble
            assert trap.went_off, error
    assert trap.went_off


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
                            build.model(ModelConfig(name, options), 3, 1, (32, 32))
                        else:
                            build.loss(LossConfig(name, options))
                        built += 1
                    except RequestError as error:
                        assert str(error)
                assert not trap.went_off, f"{name} with {options}: {trap.went_off}"
    print(f"figure: {built} built, 0 fetched anything")
    assert built > 50


FETCHERS = ("pretrained", "pretrained_url", "pretrained_path", "weights", "cache_dir", "path_or_repo_id", "filename", "checkpoint", "url")
