"""The request comes first: every job is composed and checked before anything is created, then Hydra runs the jobs.

A wrong request is one line on stderr and exit code 2. `dry_run=true` stops after the checks and prints what would run.
"""

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.errors import DataError, RequestError, check
from brainseg.records.run import Job, Outcome, stored_overrides
from brainseg.request import CONFIGS, compose_checked, compose_job, expand, is_hydras
from brainseg.signals import Interrupted

REPEATS = {"seed", "split.fold"}  # a sweep over nothing else chooses no setting, so it may look at the test patients
PAGES = ("help", "hydra_help", "cfg", "info")  # Hydra's own, shown instead of a run
NOT_OFFERED = ("config_path", "config_name", "experimental_rerun", "run", "shell_completion")  # the third unpickles a file


def main(command: str, run: Callable[..., Any], check_request: Callable[[Any], Any], argv: list[str] | None = None) -> None:
    """Entry point of every command: compose and check all jobs, then run them; ends by `sys.exit` with the contract's code."""
    if threading.current_thread() is threading.main_thread():  # before a run takes signals over: unwind, with the right code
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    argv = with_options_added(sys.argv[1:] if argv is None else argv)
    parser = get_args_parser()
    parser.error = _stop  # type: ignore[method-assign,assignment]
    arguments = parser.parse_args(argv)
    try:
        overrides = _overrides(arguments)
        if any(getattr(arguments, page) for page in PAGES):
            code = _show(command, [a for a in argv if a not in arguments.overrides], overrides)
        else:
            with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
                code = _request(command, overrides, arguments.multirun, run, check_request)
    except (RequestError, DataError, HydraException, OmegaConfBaseException) as error:  # the last two: a plugin of Hydra's failed
        _stop(error)
    except Interrupted as stop:
        print(f"{stop}; the same command with resume=auto goes on", file=sys.stderr)
        code = stop.exit_code
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)


def _show(command: str, flags: list[str], overrides: list[str]) -> int:
    """Print one of Hydra's pages, as --help or --cfg job; returns the exit code 0. Raises RequestError."""
    with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
        compose_checked(command, overrides)  # Hydra itself would run what a hostile config says on the way to the page
    sys.argv = [f"brainseg.{command}", *flags, *overrides]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(lambda _: None)()
    except (ValueError, SystemExit) as stop:  # flags that exclude each other; Hydra's own end, with its reason on stderr
        reason = said.getvalue().strip().splitlines()[:1] if isinstance(stop, SystemExit) else [str(stop)]
        check(not getattr(stop, "code", 1), " ".join(flags), "", " ".join(reason))
    return 0


def _request(command: str, overrides: list[str], multirun: bool, run: Callable, check_request: Callable) -> int:
    """Check every job of the request, then run them; returns the exit code."""
    if command != "train":
        check(not multirun, "-m", command, "only brainseg.train takes a sweep")
        config = compose_job(command, overrides)
        _checked(check_request, config)
        try:
            return run(config) or 0
        except (DataError, OSError) as error:  # may be a report of many lines
            print(f"error: {error}", file=sys.stderr)
            return 1
    jobs = expand(command, overrides) if multirun else [overrides]
    swept = _swept(jobs)
    choosing = not REPEATS.issuperset(swept)
    configs = [compose_job(command, job) for job in jobs]
    facts = []
    for config in configs:
        check(not (choosing and config.test == "yes"), "test", "yes", "a sweep that chooses between settings must not see test patients",
              "leave test=auto and evaluate the chosen run")
        facts.append(_checked(check_request, config))
    if any(config.dry_run for config in configs):
        for number, (job, fact) in enumerate(zip(jobs, facts, strict=True)):
            print(f"job {number}: {fact}   {' '.join(job)}")
        return 0
    return _enter_hydra(command, overrides, multirun, partial(_job, run, swept, choosing))


def _checked(check_request: Callable, config: Any) -> Any:
    try:
        return check_request(config)
    except OSError as error:  # as a file that must not be read
        raise RequestError(str(error)) from error


def _enter_hydra(command: str, overrides: list[str], multirun: bool, task: Callable) -> int:
    """Let Hydra run the jobs; returns 1 if any failed."""
    engine = GlobalHydra.instance().hydra
    assert engine is not None
    try:
        if not multirun:
            outcome = engine.run(command, task, overrides).return_value
            _raise_if_refused(outcome)
            return int(outcome.state == "failed")
        batches = engine.multirun(command, task, [*overrides, "hydra.mode=MULTIRUN"])
    except OSError as error:  # what a job dies of is its outcome, so this is Hydra's folder
        name = "hydra.sweep.dir" if multirun else "hydra.run.dir"
        raise RequestError(f"{name} (below runs/hydra unless set) cannot be written: {error}") from error
    outcomes = [result.return_value for batch in batches for result in batch]
    print(f"\n{len(outcomes)} jobs: " + ", ".join(f"{sum(o.state == s for o in outcomes)} {s}" for s in ("finished", "skipped", "failed")))
    for number, outcome in enumerate(outcomes):
        print(f"  {number:3d}  {outcome.state:9s} {outcome.folder}  {outcome.reason}")
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _raise_if_refused(outcome: Outcome) -> None:
    """A request that only the run itself could refuse, as a folder in use, is refused like any other."""
    if outcome.state == "refused":
        raise RequestError(outcome.reason)


def _job(run: Callable, swept: tuple[str, ...], choosing: bool, composed: DictConfig) -> Outcome:
    """One job inside Hydra. A failure ends this job alone: its traceback is in its own log, its reason on the terminal."""
    context = HydraConfig.get()
    sweep = Path(context.sweep.dir).name if context.mode == RunMode.MULTIRUN else None
    number = context.job.num if sweep else None
    job = Job(tuple(context.overrides.task), sweep, number, swept, choosing)
    try:
        return run(OmegaConf.to_object(composed), job)
    except RequestError as error:
        if number is None:  # not raised through Hydra, which would print a line of its own
            return Outcome("refused", reason=str(error))
        print(f"job {number} failed: {error}", file=sys.stderr)
        return Outcome("failed", reason=str(error))
    except Exception as error:  # whatever a job dies of, the others of its sweep go on; run() has logged the traceback
        reason = "; ".join([f"{type(error).__name__}: {error}".strip().splitlines()[0], *getattr(error, "__notes__", [])])
        print(f"{'run' if number is None else f'job {number}'} failed: {reason}", file=sys.stderr)
        return Outcome("failed", reason=reason)


def _swept(jobs: list[list[str]]) -> tuple[str, ...]:
    """The settings in which the jobs of a sweep differ. Of a setting given twice, as `from=RUN epochs=9` does, the last counts."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in dict(override.lstrip("+").partition("=")[::2] for override in job).items():
            values.setdefault(key, set()).add(value)
    return tuple(key for key, seen in values.items() if len(seen) > 1)


def _overrides(arguments: Any) -> list[str]:
    """The overrides typed, behind those of the run that `from=RUN` or `resume=RUN` names. Raises RequestError."""
    for name in NOT_OFFERED:
        check(not getattr(arguments, name, None), f"--{name.replace('_', '-')}", getattr(arguments, name, ""), "is not offered here")
    overrides = list(arguments.overrides)
    if arguments.config_dir:
        check(os.path.isdir(arguments.config_dir), "--config-dir", arguments.config_dir, "no such folder")
        quoted = str(Path(arguments.config_dir).resolve()).replace("'", "\\'")
        overrides.insert(0, f"hydra.searchpath=['file://{quoted}']")
    typed = dict(override.partition("=")[::2] for override in overrides)
    source = typed.get("from") or typed.get("resume")
    if source in (None, "", "auto", "never", "null"):
        check("from" not in typed, "from", source, "must name a run", "as from=runs/unet-0123456789")
        return overrides
    try:
        stored = [str(override) for override in stored_overrides(source)]
    except (KeyError, TypeError, AttributeError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(f"{source}/run.json: not what a run writes ({type(error).__name__}: {error})") from error
    foreign = [override for override in stored if is_hydras(override)]
    check(not foreign, f"{source}/run.json", ", ".join(foreign), "a run stores no settings of Hydra's", "give a run that brainseg made")
    return stored + [override for override in overrides if not override.startswith("from=")]


def with_options_added(argv: list[str]) -> list[str]:
    """`optimizer.options.momentum=0.9` needs Hydra's `++` because options are free; add it, since nobody would guess it."""
    return [f"++{a}" if ".options" in a.split("=", 1)[0] and "=" in a and a[0] not in "+~-" else a for a in argv]


def _stop(error: object) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
