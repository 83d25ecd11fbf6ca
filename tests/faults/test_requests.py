"""Random requests: each is a valid config, or one line and exit code 2; never another exception, never a file.

They are drawn from the schema: valid, edge and garbage values, choices of the groups, typos, Hydra's grammar, bytes nobody types.
"""

import contextlib
import gc
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from brainseg import compare, evaluate, export, predict, prepare, register, search, train
from brainseg import config as schema
from brainseg.cli.arguments import add_option_prefixes
from brainseg.cli.main import run_command
from brainseg.config import TYPES
from brainseg.config.compose import CONFIGS
from brainseg.runs.job import Outcome

SECONDS = 20  # a request that takes longer hangs
PROCESSES = 2
CHECKS = {
    "train": train.check_request,
    "evaluate": evaluate.check_request,
    "prepare": prepare.check_request,
    "compare": compare.check_request,
    "register": register.check_request,
    "export": export.check_request,
    "predict": predict.check_request,
}
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in CONFIGS.iterdir()
    if folder.is_dir()
}
EDGES = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "0.5",
    "1.5",
    "-0.0",
    "1e-3",
    "1e308",
    "1e999",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "2147483648",
    "9223372036854775808",
    "1" + "0" * 40,
    "1" + "0" * 400,
    "0x10",
    "1_000",
    "true",
    "false",
    "null",
    "none",
    "auto",
    "yes",
    "???",
    "''",
    '""',
    "",
]
GARBAGE = [
    "many",
    "a b",
    "a=b",
    "'a,b'",
    "1,2",
    "0,1,2",
    "range(3)",
    "range(0)",
    "range(1,9,0)",
    "choice(1,2)",
    "glob(*)",
    "interval(1,2)",
    "sort(3,1)",
    "shuffle(1,2)",
    "tag(a,1)",
    "int(x)",
    "float(nan)",
    "cast()",
    "[1,2,3]",
    "[]",
    "[null]",
    "[[1]]",
    "[1",
    "{a:1}",
    "{}",
    "{a:{b:[1]}}",
    "{1:2}",
    "{a",
    "'",
    '"',
    "'a",
    "\\",
    "(",
    ")",
    ":",
    ",",
    "@",
    "$",
    "${",
    "${}",
    "${seed}",
    "${epochs}",
    "${oc.env:HOME}",
    "${oc.env:NO_SUCH}",
    "${oc.decode:'[1'}",
    "${oc.create:{a:1}}",
    "${now:%Y}",
    "${eval:1}",
    "${hydra:job.name}",
    "é",
    "漢字",
    "🧠",
    "\u202eabc",
    "\u200d",
    "a\tb",
    "a\nb",
    "a\x00b",
    "\udcff",
    "\x1b[31m",
    "x" * 5000,
    "/",
    "..",
    "../../etc/passwd",
    "/dev/null",
    "/dev/zero",
    "~",
    "*",
    "-",
    "--",
    "=",
    "os.mkdir",
    "torch.load",
    "__class__",
    "A",
    "Unet",
    "1e",
    "- 1",
    "+1",
    "1.",
    ".1",
    "2024_01_15",
    "1.10",
    "größe (1).h5",
    "~/x",
    "a,b c",
    "[a b,c]",
    "it's",
    "a#b&c;d",
    "\\,",
    "[",
    "{a b:c}",
    "\u00a0",
    "e\u0308",
    "한 א",
    "???x",
]
OPTIONS = [
    "smooth",
    "weight",
    "per_sample",
    "betas",
    "eps",
    "momentum",
    "channels",
    "strides",
    "features",
    "act",
    "norm",
    "params",
    "lr",
    "x",
    "__init__",
    "self",
    "pretrained",
    "in_channels",
    "spatial_dims",
    "fused",
    "capturable",
    "maximize",
]
NAMES = [
    "unet",
    "UNet",
    "BasicUNet",
    "SegResNet",
    "DiceLoss",
    "DiceCELoss",
    "TverskyLoss",
    "adam",
    "SGD",
    "lbfgs",
    "muon",
    "Optimizer",
]
FLAGS = [
    "-m",
    "--multirun",
    "--config-dir=.",
    "--config-dir=nowhere",
    "--config-dir=" + "x" * 5000,
    "--config-name=x",
    "--cfg",
    "--cfg=job",
    "--info=x",
    "--resolve",
    "-x",
    "--help=1",
    "--package=x",
    "--experimental-rerun=x",
    "--",
    "-",
]


def walk(kind: type, prefix: str = "") -> dict[str, object]:
    """Every dotted setting below a dataclass with its default, those of its groups' further choices included."""
    found: dict[str, object] = {}
    for field in fields(kind):
        default = getattr(kind(), field.name)
        if not is_dataclass(default):
            found[prefix + field.name] = default
            continue
        choices = {type(default), *schema.CHOICES.get(field.name, {}).values()}
        for choice in choices - {schema.FileSplitConfig}:
            found |= walk(choice, f"{prefix}{field.name}.")
    return found


SETTINGS = {command: walk(kind) for command, kind in TYPES.items()}
SETTINGS["search"] |= SETTINGS["train"]


def one_request(dice: random.Random) -> tuple[str, list[str]]:
    """A command and its arguments: half of the overrides would be fine, the others are wrong in one way or several."""
    command = dice.choices([*CHECKS, "search"], [16, 2, 2, 2, 1, 1, 2, 1])[0]
    argv = [override(dice, command) for _ in range(dice.choice([1, 1, 1, 1, 1, 2, 2, 4]))]
    if dice.random() < 0.05:
        argv.insert(dice.randrange(len(argv) + 1), dice.choice(FLAGS))
    given = {
        "evaluate": ["checkpoint=a.pt"],
        "prepare": ["source=.", "output=a.h5"],
        "register": ["run=a", "name=b"],
        "export": ["checkpoint=a.pt", "output=a.onnx"],
        "predict": ["checkpoint=a.pt", "input=."],
    }.get(command, [])
    return command, argv + (given if dice.random() < 0.8 else []) + (
        ["dry_run=true"] if command in ("train", "search") else []
    )


def override(dice: random.Random, command: str) -> str:
    settings = SETTINGS[command]
    kind = dice.random()
    if kind < 0.2:
        group = dice.choice(
            [*GROUPS, "experiment", "hydra/launcher", "hydra/sweeper", "hydra/job_logging", "x"]
        )
        choices = GROUPS.get(group, ["basic"]) if dice.random() < 0.8 else GARBAGE
        return f"{group}{dice.choice(['=', '=', '=', '=', '@x='])}{dice.choice(choices)}"
    if kind < 0.3:
        family = dice.choice(["model", "loss", "optimizer"])
        return f"{family}.{'name' if dice.random() < 0.3 else 'options.' + dice.choice(OPTIONS)}={dice.choice(NAMES + EDGES + GARBAGE)}"
    if kind < 0.35:
        key = dice.choice(
            [
                "run.dir",
                "sweep.dir",
                "job.name",
                "verbose",
                "mode",
                "searchpath",
                "job.chdir",
                "callbacks",
                "sweeper.params",
                "launcher",
                "output_subdir",
                "job.env_set",
                "help.template",
                "x",
            ]
        )
        return f"{dice.choice(['', '+', '++'])}hydra.{key}={dice.choice(EDGES + GARBAGE)}"
    name = dice.choice(list(settings))
    if kind < 0.42:
        name = misspelt(dice, name)
    if kind > 0.97:
        return dice.choice([name, f"~{name}", f"+{name}", "=", "", f"={name}", f"{name}=="])
    return f"{dice.choice([''] * 12 + ['+', '++', '~'])}{name}={value(dice, settings.get(name))}"


def value(dice: random.Random, default: object) -> str:
    """Return text for a setting with this default: mostly what it may be, else an edge or garbage."""
    kind = dice.random()
    if kind < 0.65 and isinstance(default, bool | str):
        return dice.choice([str(default).lower() or "''"] * 3 + ["auto", "yes", "none"])
    if kind < 0.65 and isinstance(default, int | float):
        return repr(dice.choice([default] * 4 + [1, 2, 3, 4, 0.25]))
    if kind < 0.65:
        return dice.choice(["null", "1", "2"])
    return dice.choice(EDGES if kind < 0.85 else GARBAGE)


def misspelt(dice: random.Random, name: str) -> str:
    at = dice.randrange(len(name))
    return dice.choice(
        [
            name[:at] + name[at + 1 :],
            name[:at] + name[at] + name[at:],
            f"{name}.x",
            name.upper(),
            name.replace(".", "/"),
            name[:at] + "é" + name[at:],
            name.replace(".", ".."),
            f"x.{name}",
        ]
    )


class Answer(NamedTuple):
    """What a request came to."""

    code: object
    error: str
    seconds: float


def answer(command: str, argv: list[str]) -> Answer:
    """Ask in this process. What escapes from `run_command` is the code, as a traceback."""
    said, started = io.StringIO(), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            if command == "search":
                own, trains = search.split_arguments(argv)
                run_command(
                    command, lambda _: 0, search.Search(add_option_prefixes(trains)).check, own
                )
            else:
                run_command(
                    command,
                    lambda *arguments: Outcome("finished") if command == "train" else 0,
                    CHECKS[command],
                    argv,
                )
        except SystemExit as stop:
            code: object = stop.code
        except BaseException:
            code = traceback.format_exc()[-1500:]
        else:
            code = "main returned"
    signal.setitimer(signal.ITIMER_REAL, 0)
    return Answer(code, said.getvalue(), time.perf_counter() - started)


def wrong(found: Answer) -> str:
    """What is wrong with an answer; "" if nothing."""
    if found.code == 0:
        return ""
    if found.code != 2:
        return f"{found.code}"
    one_line = (
        found.error.startswith("error: ")
        and found.error.count("\n") == 1
        and found.error.endswith("\n")
        and len(found.error) > 15
    )
    return "" if one_line else f"not one line: {found.error!r}"


def storm(seed: int, count: int, folder: Path) -> tuple[int, int, float, list[str]]:
    """Ask `count` random requests in `folder`; (accepted, refused, worst seconds, what went wrong)."""
    os.chdir(folder)
    signal.signal(signal.SIGALRM, _hangs)
    gc.freeze()  # a sixth of the time went into looking through torch's objects for garbage
    gc.set_threshold(100_000)
    dice, faults, accepted, worst = random.Random(seed), [], 0, 0.0
    for _ in range(count):
        command, argv = one_request(dice)
        found = answer(command, argv)
        accepted, worst = accepted + (found.code == 0), max(worst, found.seconds)
        created = sorted(os.listdir(folder))
        if fault := wrong(found) or (f"created {created}" if created else ""):
            faults.append(f"{command} {[argument[:200] for argument in argv]}: {fault}")
            _ = [path.unlink() for path in folder.rglob("*") if path.is_file()]
            if created or len(faults) > 20:
                break
    return accepted, count - accepted, worst, faults


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS} s")


def ask(count: int, tmp_path: Path, seed: int) -> tuple[int, int, float, list[str]]:
    """`storm` in forked processes, so that this one keeps its folder, its signals and its number of threads."""
    folders = [tmp_path / str(number) for number in range(PROCESSES)]
    for folder in folders:
        folder.mkdir()
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        found = pool.starmap(
            storm,
            [(seed + number, count // PROCESSES, folder) for number, folder in enumerate(folders)],
            chunksize=1,
        )
    accepted, refused, worst, faults = zip(*found, strict=True)
    return sum(accepted), sum(refused), max(worst), [fault for part in faults for fault in part]


@pytest.mark.parametrize(
    ("count", "seed"), [(40, 4), pytest.param(10_000, 1, marks=pytest.mark.faults)]
)
def test_random_requests_are_valid_or_one_line(tmp_path: Path, count: int, seed: int) -> None:
    accepted, refused, worst, faults = ask(count, tmp_path, seed)
    print(
        f"figure: {accepted} requests accepted, {refused} refused, {len(faults)} wrong, the slowest took {worst:.2f} s"
    )
    assert not faults, "\n".join(faults[:20])
    assert min(accepted, refused) > count / 20, "the draw must hold both"


@pytest.mark.parametrize("count", [2, pytest.param(30, marks=pytest.mark.faults)])
def test_random_requests_to_real_processes(tmp_path: Path, count: int) -> None:
    dice, waiting, asked = random.Random(count), [], 0
    while asked < count or waiting:
        while len(waiting) < PROCESSES and asked < count:
            command, argv = one_request(dice)
            argv = [
                argument.replace("\x00", "\x01") for argument in argv
            ]  # the system itself passes no zero byte
            waiting.append((argv, start(tmp_path, command, argv)))
            asked += 1
        argv, process = waiting.pop(0)
        out, error = process.communicate(timeout=120)
        fine = process.returncode == 0 or (process.returncode == 2 and is_one_line(error))
        assert fine, f"{argv}: {process.returncode}\n{out.decode()}\n{error.decode()}"
        assert list(tmp_path.iterdir()) == [], argv
    print(f"figure: {count} processes, 0 wrong")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("command", "request_"),
    [
        ("train", "resume=" + "0a" * 16),
        ("evaluate", "checkpoint=runs:/" + "0a" * 16),
        ("evaluate", "checkpoint=models:/unet@best"),
    ],
)
def test_asking_for_a_run_of_no_store_makes_none(
    tmp_path: Path, command: str, request_: str
) -> None:
    given = [
        "data.phantom.patients=8",
        "data.phantom.slices=4",
        "data.phantom.size=32",
        f"data.phantom.folder={tmp_path / 'data'}",
    ]
    (tmp_path / "here").mkdir()
    process = start(tmp_path / "here", command, [request_, *given])
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and is_one_line(error), error.decode()
    assert list((tmp_path / "here").iterdir()) == []


def start(folder: Path, command: str, argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", f"brainseg.{command}", *map(os.fsencode, argv)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def is_one_line(error: bytes) -> bool:
    return error.startswith(b"error: ") and error.count(b"\n") == 1
