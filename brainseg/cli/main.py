"""The request comes first: every job is composed and checked before anything is created, then Hydra runs the jobs.

A wrong request is one line on stderr and exit code 2. `dry_run=true` stops after the checks and prints what would run; with
`dry_run=measure` also how long it would take.
"""

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from brainseg.cli import help_text
from brainseg.config.compose import (
    CONFIGS,
    check_budget,
    check_output,
    compose_checked,
    compose_job,
    expand_sweep,
    is_hydra_setting,
    task_overrides,
)
from brainseg.config.overrides import setting_of, values_by_setting, without_settings
from brainseg.config.text import as_typed, quote_path, text_of
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.output import ignoring_closed_output
from brainseg.core.signals import Interrupted, interrupt_on_signals
from brainseg.runs.dry_run import plan_job, under_other_code
from brainseg.runs.find import resolve_run, stored_overrides
from brainseg.runs.identity import drop_non_identity
from brainseg.runs.job import Job, JobState
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import sweep_id, write_record
from brainseg.sweeps import launch
from brainseg.sweeps import summary as sweep
from brainseg.sweeps.isolated_process import SubprocessDied, call_in_subprocess
from brainseg.sweeps.run_job import run_job

PAGES = (
    "help",
    "hydra_help",
    "cfg",
    "info",
)  # shown instead of a run; but for the first they are Hydra's own
# The third unpickles a file. The last composes half-typed lines unchecked, a second each: `brainseg completion` writes them down once.
NOT_OFFERED = ("config_path", "config_name", "experimental_rerun", "run", "shell_completion")


def run_command(
    command: str,
    run: Callable[..., Any],
    check_request: Callable[[Any], Any],
    argv: list[str] | None = None,
    finish: Callable[..., str] | None = None,
) -> None:
    """Run a command, where output that nobody reads is dropped: `| head`, or a terminal that is closed, fails no run."""
    with ignoring_closed_output():
        _run_command(command, run, check_request, argv, finish)


def _run_command(
    command: str,
    run: Callable[..., Any],
    check_request: Callable[[Any], Any],
    argv: list[str] | None = None,
    finish: Callable[..., str] | None = None,
) -> None:
    """Entry point of every command: compose and check all jobs, then run them; ends by `sys.exit` with the contract's code.

    `finish` is told a sweep's id, root and first config when its jobs have ended, and says what is then printed.
    """
    argv = with_options_added(sys.argv[1:] if argv is None else argv)
    parser = get_args_parser()
    parser.error = _stop  # type: ignore[method-assign, assignment]
    arguments, unknown = parser.parse_known_intermixed_args(argv)  # flags may stand anywhere
    try:
        with interrupt_on_signals():  # until a run takes signals over
            _refuse_flags(unknown)
            overrides = _overrides(command, arguments)
            if any(getattr(arguments, page) for page in PAGES):
                code = _show(command, [a for a in argv if a not in arguments.overrides], overrides)
            else:
                with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
                    code = _request(command, overrides, arguments, run, check_request, finish)
    except (
        RequestError,
        DataError,
        HydraException,
        OmegaConfBaseException,
    ) as error:  # the last two: a plugin of Hydra's failed
        _stop(error)
    except Interrupted as stop:
        how = (
            " goes on" if arguments.multirun else " with resume=auto goes on"
        )  # which is what -m does by itself
        print(f"{stop}; the same command{how}" if command == "train" else stop, file=sys.stderr)
        code = stop.exit_code
    sys.exit(code)


def _show(command: str, flags: list[str], overrides: list[str]) -> int:
    """Print --help, or one of Hydra's pages, as --cfg job; returns the exit code 0. Raises RequestError."""
    with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
        composed = compose_checked(
            command, overrides
        )  # Hydra itself would run what a hostile config says on the way to the page
        if {"--help", "-h"} & set(flags):
            only = len(flags) == 1 or all(
                flag.startswith("--config-dir") for flag in flags if flag not in ("--help", "-h")
            )
            if not only:
                raise RequestError(f"{' '.join(flags)}: one page at a time")
            print(help_text.help_page(command, composed, overrides))
            return 0
    sys.argv = [f"brainseg.{command}", *flags, *overrides]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(
                lambda _: None
            )()
    except (
        ValueError,
        SystemExit,
    ) as stop:  # flags that exclude each other; Hydra's own end, with its reason on stderr
        reason = (
            said.getvalue().strip().splitlines()[:1]
            if isinstance(stop, SystemExit)
            else [str(stop)]
        )
        check(not getattr(stop, "code", 1), " ".join(flags), "", " ".join(reason))
    return 0


def _request(
    command: str,
    overrides: list[str],
    arguments: Any,
    run: Callable,
    check_request: Callable,
    finish: Callable[..., str] | None,
) -> int:
    """Check every job of the request, then run them; returns the exit code."""
    multirun = arguments.multirun
    if command != "train":
        if multirun:
            raise RequestError("-m: only brainseg.train takes a sweep")
        config = compose_job(command, overrides)
        check_output(command, config)
        _checked(check_request, config)
        try:
            return run(config) or 0
        except (
            DataError,
            OSError,
            FloatingPointError,
        ) as error:  # may be a report of many lines; the last is a network's NaN
            print(f"error: {error}", file=sys.stderr)
            return 1
    if multirun and not overrides:
        raise RequestError(
            "-m: nothing to vary; give a list of values, as -m model.width=16,32, or leave out -m for a single run"
        )
    settings, jobs = expand_sweep(command, overrides) if multirun else (None, [overrides])
    of_sweep = multirun or _repeated(arguments.overrides) is not None
    configs = [compose_job(command, job, of_sweep) for job in jobs]
    swept = sweep.settings_swept(jobs)
    choosing = not sweep.REPEATS.issuperset(swept)
    facts = []
    for config in configs:
        check_budget([*arguments.overrides, *swept], config)
        check_output(command, config)
        check(
            not (choosing and config.test == "yes"),
            "test",
            "yes",
            "a sweep that chooses between settings must not see test patients",
            "leave test=auto and evaluate the chosen run",
        )
        elsewhere = settings is not None and launch.is_elsewhere(settings)
        facts.append(_checked(check_request, _any_device(config) if elsewhere else config))
    names = [sweep.job_label(job, swept) for job in jobs]
    job = Job(sweep="planned" if multirun else None)
    if multirun and (other := under_other_code(configs, facts, job)):
        print(
            f"{other} of the {len(jobs)} jobs were finished under other code; this code runs them anew, in folders of their own"
        )
    if any(config.dry_run != "false" for config in configs):
        fates = [plan_job(config, fact, job) for config, fact in zip(configs, facts, strict=True)]
        threads = launch.share_cores(settings)[0] if settings else None
        measure = (
            partial(_measured, threads)
            if any(config.dry_run == "measure" for config in configs)
            else None
        )
        print(sweep.format_plan(facts, fates, names, configs, measure))
        return 0
    if settings is None:
        return _run_alone(configs[0], task_overrides(overrides), run)
    name, root = sweep_id(jobs, swept), Path(configs[0].output or "runs")
    started = launch.prepare_launch(settings, name, swept, choosing)
    if started.launcher == "basic":
        log_to_stdout()
        outcomes, stopped = launch.run_in_turn(
            configs, [task_overrides(job) for job in jobs], names, started, run
        )
    else:
        outcomes, stopped = launch.run_through_hydra(command, overrides, len(jobs), started, run)
    outcomes = sweep.mark_lost_jobs(outcomes, configs, facts, replace(job, start=started.start))
    write_record(
        root,
        name,
        [
            {"overrides": job, **asdict(outcome)}
            for job, outcome in zip(jobs, outcomes, strict=True)
        ],
    )
    print(sweep.format_summary(outcomes, names))
    if stopped:
        raise stopped
    if finish is not None:
        print(f"\n{finish(name, root, configs[0])}")
    return int(any(outcome.state in (JobState.FAILED, JobState.STOPPED) for outcome in outcomes))


def _any_device(config: Any) -> Any:
    """The same job, for a check on a machine that need not have its device."""
    return replace(config, device=replace(config.device, on_missing="skip"))


def _measured(threads: int | None, config: Any) -> tuple[float, int] | str:
    """Seconds and bytes of one job, or in a few words why they are not known."""
    try:
        seconds, memory = call_in_subprocess("brainseg.train:measure", config, threads)
    except SubprocessDied as died:  # as the job itself would, of too little memory
        return str(died)
    return seconds, memory


def _checked(check_request: Callable, config: Any) -> Any:
    try:
        return check_request(config)
    except OSError as error:  # as a file that must not be read
        raise RequestError(str(error)) from error


def _run_alone(config: Any, overrides: list[str], run: Callable) -> int:
    """Run the one job; returns 1 if it failed. Raises RequestError also for what only the run itself could refuse."""
    log_to_stdout()
    outcome = run_job(run, config, Job(tuple(overrides)))
    if outcome.state == JobState.REFUSED:  # as a folder in use
        raise RequestError(outcome.reason)
    return int(outcome.state == JobState.FAILED)


def log_to_stdout() -> None:
    """Print log lines of level INFO and above as they are. The run's own log.txt has times and levels."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)


def _overrides(command: str, arguments: Any) -> list[str]:
    """Return the overrides that were typed, after those of the run that `from=RUN` or `resume=RUN` names. Raises RequestError."""
    for name in NOT_OFFERED:
        check(
            not getattr(arguments, name, None),
            f"--{name.replace('_', '-')}",
            getattr(arguments, name, ""),
            "is not offered here",
        )
    overrides = as_typed(command, arguments.overrides, sweeps=bool(arguments.multirun))
    if arguments.config_dir:
        check(
            os.path.isdir(arguments.config_dir),
            "--config-dir",
            arguments.config_dir,
            "no such folder",
        )
        overrides.insert(
            0, f"hydra.searchpath=[{quote_path(f'file://{Path(arguments.config_dir).resolve()}')}]"
        )
    source = _repeated(overrides)
    typed = values_by_setting(overrides)
    if source is None:
        check(
            "from" not in typed,
            "from",
            typed.get("from"),
            "must name a run",
            "as from=runs/unet-0123456789",
        )
        return overrides
    try:
        stored = [
            str(override)
            for override in stored_overrides(source, "from" if "from" in typed else "resume")
        ]
    except (
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise RequestError(
            f"{source}/run.json: not what a run writes ({type(error).__name__}: {error})"
        ) from error
    foreign = [override for override in stored if is_hydra_setting(override)]
    check(
        not foreign,
        f"{source}/run.json",
        ", ".join(foreign),
        "a run stores no settings of Hydra's",
        "give a run that brainseg made",
    )
    if "from" not in typed:
        return as_typed(command, stored) + overrides
    # The same steps in other minutes: where no further setting changes what a step costs, they are not measured anew.
    in_minutes = RunFolder(resolve_run(source, "from")).plan.is_file() and not drop_non_identity(
        typed, ("from", "seed", "split")
    )
    repeats = [f"steps_of={quote_path(source)}"] if in_minutes else []
    return (
        as_typed(command, without_settings(stored, ("steps_of",)))
        + repeats
        + without_settings(overrides, ("from",))
    )


def _repeated(overrides: list[str]) -> str | None:
    """Return the run that `from=RUN` or `resume=RUN` names, or None if the request is for a new run."""
    typed = values_by_setting(overrides)
    source = text_of(typed.get("from") or typed.get("resume") or "")
    return None if source in ("", "auto", "never", "null") else source


def with_options_added(argv: list[str]) -> list[str]:
    """Return the arguments with Hydra's `++` where a setting is free, as optimizer.options.momentum=0.9 and classes.core=2 are."""
    free = (".options", "sequences.", "classes.")
    return [
        f"++{a}"
        if any(name in setting_of(a) for name in free) and "=" in a and a[0] not in "+~-"
        else a
        for a in argv
    ]


def _refuse_flags(unknown: list[str]) -> None:
    """Refuse flags that there are not, since argparse says nothing that helps of `--epochs 5`. Raises RequestError."""
    if not unknown:
        return
    name, _, value = unknown[0].lstrip("-").partition("=")
    remedy = "--help lists the flags"
    if unknown[0].startswith("--") and name:
        remedy = (
            f"a setting is written without dashes, as {name.replace('-', '_')}={value or 'VALUE'}"
        )
    raise RequestError(f"{unknown[0]}: no such flag; {remedy}")


def _stop(error: object) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
