"""The request comes first: every job is composed and checked before anything is created, then Hydra runs the jobs.

A wrong request is one line on stderr and exit code 2. `dry_run=true` stops after the checks and prints what would run.
"""

import difflib
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from brainseg import config as schema
from brainseg.errors import DataError, RequestError, check
from brainseg.records.run import Job, Outcome, stored_overrides
from brainseg.signals import Interrupted

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, in a checkout
REPEATS = {"seed", "split.fold"}  # a sweep over nothing else chooses no setting, so it may look at the test patients
OWN_PLUGINS = ("hydra._internal.", "hydra_plugins.")


def main(command: str, run: Callable[..., Any], check_request: Callable[[Any], Any], argv: list[str] | None = None) -> None:
    """Entry point of every command: compose and check all jobs, then run them; ends by `sys.exit` with the contract's code."""
    schema.register()
    if threading.current_thread() is threading.main_thread():  # before a run takes signals over: unwind, with the right code
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    argv = _with_options_added(sys.argv[1:] if argv is None else argv)
    parser = get_args_parser()
    parser.error = _stop  # type: ignore[method-assign,assignment]
    arguments = parser.parse_args(argv)
    if arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion:
        sys.argv = [f"brainseg.{command}", *argv]
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(lambda _: None)()
        return
    try:
        overrides = _overrides(arguments)
        with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
            code = _request(command, overrides, arguments.multirun, run, check_request)
    except (RequestError, DataError) as error:
        _stop(error)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(_in_one_line(error, command))
    except Interrupted as stop:
        print(f"{stop}; the same command with resume=auto goes on", file=sys.stderr)
        code = stop.exit_code
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)


def _request(command: str, overrides: list[str], multirun: bool, run: Callable, check_request: Callable) -> int:
    """Check every job of the request, then run them; returns the exit code."""
    if command != "train":
        check(not multirun, "-m", command, "only brainseg.train takes a sweep")
        config = compose_job(command, overrides)
        check_request(config)
        try:
            return run(config) or 0
        except DataError as error:  # may be a report of many lines
            print(f"error: {error}", file=sys.stderr)
            return 1
    jobs = expand(command, overrides) if multirun else [overrides]
    choosing = multirun and _chooses(jobs)
    configs = [compose_job(command, job) for job in jobs]
    facts = []
    for config in configs:
        check(not (choosing and config.test == "yes"), "test", "yes", "a sweep that chooses between settings must not see test patients",
              "leave test=auto and evaluate the chosen run")
        facts.append(check_request(config))
    if any(config.dry_run for config in configs):
        for number, (job, fact) in enumerate(zip(jobs, facts, strict=True)):
            print(f"job {number}: {fact}   {' '.join(job)}")
        return 0
    return _enter_hydra(command, overrides, multirun, partial(_job, run, choosing))


def _enter_hydra(command: str, overrides: list[str], multirun: bool, task: Callable) -> int:
    """Let Hydra run the jobs; returns 1 if any failed."""
    engine = GlobalHydra.instance().hydra
    assert engine is not None
    if not multirun:
        return int(engine.run(command, task, overrides).return_value.state == "failed")
    batches = engine.multirun(command, task, [*overrides, "hydra.mode=MULTIRUN"])
    outcomes = [result.return_value for batch in batches for result in batch]
    print(f"\n{len(outcomes)} jobs: " + ", ".join(f"{sum(o.state == s for o in outcomes)} {s}" for s in ("finished", "skipped", "failed")))
    for number, outcome in enumerate(outcomes):
        print(f"  {number:3d}  {outcome.state:9s} {outcome.folder}  {outcome.reason}")
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _job(run: Callable, choosing: bool, composed: DictConfig) -> Outcome:
    """One job inside Hydra. A failure ends this job alone: its traceback is in its own log, its reason on the terminal."""
    context = HydraConfig.get()
    sweep = Path(context.sweep.dir).name if context.mode == RunMode.MULTIRUN else None
    number = context.job.num if sweep else None
    job = Job(tuple(context.overrides.task), sweep, number, choosing)
    try:
        return run(OmegaConf.to_object(composed), job)
    except RequestError as error:
        if number is None:
            raise
        print(f"job {number} failed: {error}", file=sys.stderr)
        return Outcome("failed", reason=str(error))
    except Exception as error:  # whatever a job dies of, the others of its sweep go on; run() has logged the traceback
        reason = "; ".join([f"{type(error).__name__}: {error}".strip().splitlines()[0], *getattr(error, "__notes__", [])])
        print(f"{'run' if number is None else f'job {number}'} failed: {reason}", file=sys.stderr)
        return Outcome("failed", reason=reason)


def compose_job(command: str, overrides: list[str]) -> Any:
    """Compose one job's dataclass from its overrides. Raises RequestError, or what Hydra and OmegaConf raise."""
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        check("_target_" not in override, key, override.split("=", 1)[-1], "configs name things, they import nothing", "remove it")
    composed = compose(command, overrides, return_hydra_config=True)
    _refuse_imports(composed)
    with open_dict(composed):
        del composed["hydra"]
    _refuse_unknown(composed, type_of(command))
    missing = sorted(OmegaConf.missing_keys(composed))
    check(not missing, ", ".join(missing), "???", "must be given", f"as {missing[0] if missing else ''}=VALUE")
    return OmegaConf.to_object(composed)


def type_of(command: str) -> type:
    """The dataclass of a command's settings."""
    return {"train": schema.TrainConfig, "prepare": schema.PrepareConfig, "evaluate": schema.EvaluateConfig}[command]


def expand(command: str, overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, in Hydra's order (its own grammar: lists, `range`, `choice`, `glob`)."""
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_configuration(command, overrides, RunMode.MULTIRUN)
    params = composed.hydra.sweeper.get("params") or {}
    swept = [f"{key}={value}" for key, value in params.items()] + list(composed.hydra.overrides.task)
    own = [override for override in overrides if override.lstrip("+~").startswith(("hydra.", "hydra/"))]
    batches = BasicSweeper.split_arguments(OverridesParser.create(loader).parse_overrides(swept), None)
    return [own + job for batch in batches for job in batch]


def _chooses(jobs: list[list[str]]) -> bool:
    """Whether the jobs differ in anything but seed and fold."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            key, _, value = override.partition("=")
            values.setdefault(key.lstrip("+"), set()).add(value)
    return any(len(seen) > 1 for key, seen in values.items() if key not in REPEATS)


def _overrides(arguments: Any) -> list[str]:
    """The overrides typed, behind those of the run that `from=RUN` or `resume=RUN` names."""
    for name in ("config_path", "config_name", "experimental_rerun", "run"):
        check(not getattr(arguments, name, None), f"--{name.replace('_', '-')}", getattr(arguments, name, ""), "is not offered here")
    overrides = list(arguments.overrides)
    if arguments.config_dir:
        overrides.insert(0, f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]")
    typed = dict(override.partition("=")[::2] for override in overrides)
    source = typed.get("from") or typed.get("resume")
    if source in (None, "", "auto", "never", "null"):
        check("from" not in typed, "from", source, "must name a run", "as from=runs/unet-0123456789")
        return overrides
    return stored_overrides(source) + [override for override in overrides if not override.startswith("from=")]


def _with_options_added(argv: list[str]) -> list[str]:
    """`optimizer.options.momentum=0.9` needs Hydra's `++` because options are free; add it, since nobody would guess it."""
    return [f"++{a}" if ".options." in a.split("=", 1)[0] and "=" in a and a[0] not in "+~-" else a for a in argv]


def _refuse_imports(composed: DictConfig) -> None:
    """Configs may name our tables' entries but import nothing: no `_target_`, no callbacks, no foreign launcher."""
    job = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    container = OmegaConf.to_container(job, resolve=False)
    check("_target_" not in repr(container), "_target_", "found in the config", "configs name things, they import nothing", "remove it")
    callbacks = composed.hydra.get("callbacks")
    check(not callbacks, "hydra.callbacks", list(callbacks or ()), "callbacks run code of the config's choice", "remove them")
    for part in ("launcher", "sweeper"):
        target = str(composed.hydra[part].get("_target_"))
        check(target.startswith(OWN_PLUGINS), f"hydra.{part}", target, "must be Hydra's own or an installed plugin of Hydra")


def _refuse_unknown(node: Any, kind: Any, prefix: str = "") -> None:
    """`+key=value` would add a setting that nothing reads; refuse it by name."""
    if not isinstance(node, DictConfig) or not is_dataclass(kind):
        return
    known = [field.name for field in fields(kind)]
    for key in map(str, node):
        name = f"{prefix}{key}"
        value = "???" if OmegaConf.is_missing(node, key) else node.get(key)
        check(key in known, name, value, "no such setting", _nearest(name, known, prefix))
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown(child, OmegaConf.get_type(child), f"{name}.")


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, [prefix + one for one in known], n=1)
    close = close or difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def settings(kind: type = schema.TrainConfig) -> list[str]:
    """Every dotted setting that a command's default choices take."""
    command = next(name for name in ("train", "prepare", "evaluate") if type_of(name) is kind)
    return list(schema.flatten(OmegaConf.to_container(compose(command), throw_on_missing=False)))


def _in_one_line(error: Exception, command: str) -> str:
    """Hydra's and OmegaConf's several lines as one that names setting, value, rule and remedy."""
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    if text[0].startswith("Could not override"):
        name = text[0].split("'")[1]
        with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
            known = settings(type_of(command))
        group, _, leaf = name.rpartition(".")
        if group in ("optimizer", "loss", "model") and not difflib.get_close_matches(name, known, cutoff=0.9):
            return f"{name}: no such setting; arguments of the {group} chosen go under {group}.options, as {group}.options.{leaf}=VALUE"
        return f"{name}: no such setting; {_nearest(name, known)}"
    if "Could not find" in text[0] and "Available options" in str(error):
        listed = text[text.index(next(line for line in text if line.startswith("Available"))) + 1 :]
        options = listed[: next((i for i, line in enumerate(listed) if line.startswith("Config search")), None)]
        group, _, choice = text[0].split("'")[-2].rpartition("/")
        return f"{group}={choice}: no such choice; known: {', '.join(options)}"
    if text[0].startswith("Error merging override"):
        return f"{text[0].removeprefix('Error merging override ')}: {cause.removesuffix('.')}"
    return f"the overrides cannot be read: {text[0]}" + (f" ({cause})" if cause and cause not in text[0] else "")


def _stop(error: object) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
