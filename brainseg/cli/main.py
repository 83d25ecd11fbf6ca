"""Entry point of all commands: compose and check every job of the request, then run the jobs.

Nothing is created before every job has passed the checks. An invalid request prints one line on
stderr and ends with exit code 2. `dry_run=true` stops after the checks and prints which jobs would
run. `dry_run=measure` also prints how long they would take.
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
from brainseg.config.text import quote_path, quote_text_values, text_of
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.output import ignoring_closed_output
from brainseg.core.signals import Interrupted, interrupt_on_signals
from brainseg.runs.dry_run import count_jobs_under_other_code, plan_job
from brainseg.runs.find import resolve_run, stored_overrides
from brainseg.runs.identity import drop_non_identity
from brainseg.runs.job import Job, JobState
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import sweep_id, write_record
from brainseg.sweeps import launch, summary
from brainseg.sweeps.isolated_process import SubprocessFailed, call_in_subprocess
from brainseg.sweeps.run_job import run_job

# Flags that print a page instead of running the command. All but "help" are Hydra's own.
PAGES = ("help", "hydra_help", "cfg", "info")
# --experimental-rerun unpickles a file, which can run any code. --shell-completion composes
# half-typed lines without checks and takes a second for each; `brainseg completion` replaces it.
REFUSED_FLAGS = ("config_path", "config_name", "experimental_rerun", "run", "shell_completion")


@ignoring_closed_output()
def run_command(
    command: str,
    run: Callable[..., Any],
    check_request: Callable[[Any], Any],
    argv: list[str] | None = None,
    finish: Callable[..., str] | None = None,
) -> None:
    """Run a command or print one of its pages, and exit with the exit code.

    `finish` receives a sweep's id, root folder and first config after all jobs have ended, and
    returns the text to print. Output that nobody reads is dropped, so that `| head` or a closed
    terminal makes no run fail.
    """
    argv = add_option_prefixes(sys.argv[1:] if argv is None else argv)
    parser = get_args_parser()
    parser.error = _exit_with_error  # type: ignore[method-assign, assignment]
    # Flags may stand anywhere among the overrides.
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    try:
        # A run replaces these handlers. Its own save the run before it stops.
        with interrupt_on_signals():
            _refuse_flags(unknown)
            overrides = _read_overrides(command, arguments)
            if any(getattr(arguments, page) for page in PAGES):
                flags = [argument for argument in argv if argument not in arguments.overrides]
                code = _print_page(command, flags, overrides)
            else:
                with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
                    code = _run_request(command, overrides, arguments, run, check_request, finish)
    # A failing plugin of Hydra raises one of the last two.
    except (RequestError, DataError, HydraException, OmegaConfBaseException) as error:
        _exit_with_error(error)
    except Interrupted as interruption:
        # A sweep resumes its jobs by itself, a single run only with resume=auto.
        same_command = (
            "the same command" if arguments.multirun else "the same command with resume=auto"
        )
        remedy = f"; run {same_command} to resume" if command == "train" else ""
        print(f"{interruption}{remedy}", file=sys.stderr)
        code = interruption.exit_code
    sys.exit(code)


def _print_page(command: str, flags: list[str], overrides: list[str]) -> int:
    """Print --help or one of Hydra's pages, such as --cfg job, and return the exit code 0.

    Raises RequestError if the config is invalid or if `flags` ask for several pages.
    """
    with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
        # Hydra would instantiate the targets of a hostile config before it prints the page.
        composed = compose_checked(command, overrides)
        if {"--help", "-h"} & set(flags):
            is_only_page = len(flags) == 1 or all(
                flag.startswith("--config-dir") for flag in flags if flag not in ("--help", "-h")
            )
            if not is_only_page:
                raise RequestError(
                    f"{' '.join(flags)}: only one page at a time can be printed; "
                    "give one of these flags"
                )
            print(help_text.format_help(command, composed, overrides))
            return 0
    sys.argv = [f"brainseg.{command}", *flags, *overrides]
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(
                lambda _: None
            )()
    # Flags that exclude each other raise ValueError. Hydra's own errors are printed on stderr
    # and followed by SystemExit.
    except (ValueError, SystemExit) as error:
        reason = (
            errors.getvalue().strip().splitlines()[:1]
            if isinstance(error, SystemExit)
            else [str(error)]
        )
        check(not getattr(error, "code", 1), " ".join(flags), "", " ".join(reason))
    return 0


def _run_request(
    command: str,
    overrides: list[str],
    arguments: Any,
    run: Callable,
    check_request: Callable,
    finish: Callable[..., str] | None,
) -> int:
    """Check every job of the request, then run the jobs and return the exit code."""
    multirun = arguments.multirun
    if command != "train":
        if multirun:
            raise RequestError("-m: only brainseg.train takes a sweep")
        config = compose_job(command, overrides)
        check_output(command, config)
        _check_job(check_request, config)
        try:
            return run(config) or 0
        # The message may be a report of many lines. A network that outputs NaN raises
        # FloatingPointError.
        except (DataError, OSError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if multirun and not overrides:
        raise RequestError(
            "-m: nothing to vary; give a list of values, such as -m model.width=16,32, "
            "or leave out -m for a single run"
        )
    settings, jobs = expand_sweep(command, overrides) if multirun else (None, [overrides])
    of_sweep = multirun or _named_run(arguments.overrides) is not None
    configs = [compose_job(command, job_overrides, of_sweep) for job_overrides in jobs]
    swept = summary.find_swept_settings(jobs)
    choosing = not summary.REPETITION_SETTINGS.issuperset(swept)
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
        on_cluster = settings is not None and launch.runs_on_cluster(settings)
        facts.append(_check_job(check_request, _any_device(config) if on_cluster else config))
    labels = [summary.job_label(job_overrides, swept) for job_overrides in jobs]
    job = Job(sweep="planned" if multirun else None)
    if multirun and (count := count_jobs_under_other_code(configs, facts, job)):
        print(
            f"{count} of the {len(jobs)} jobs were finished under other code; "
            "they run again under this code, in new folders"
        )
    if any(config.dry_run != "false" for config in configs):
        plans = [plan_job(config, fact, job) for config, fact in zip(configs, facts, strict=True)]
        threads = launch.share_cores(settings)[0] if settings else None
        measure = (
            partial(_measure_job, threads)
            if any(config.dry_run == "measure" for config in configs)
            else None
        )
        print(summary.format_plan(facts, plans, labels, configs, measure))
        return 0
    if settings is None:
        return _run_single_job(configs[0], task_overrides(overrides), run)
    sweep, root = sweep_id(jobs, swept), Path(configs[0].output or "runs")
    context = launch.prepare_launch(settings, sweep, swept, choosing)
    if context.launcher == "basic":
        log_to_stdout()
        outcomes, interruption = launch.run_in_turn(
            configs, [task_overrides(job_overrides) for job_overrides in jobs], labels, context, run
        )
    else:
        outcomes, interruption = launch.run_through_hydra(
            command, overrides, len(jobs), context, run
        )
    # A killed process leaves its run marked as running. The record and the table need its real
    # state.
    outcomes = summary.mark_lost_jobs(outcomes, configs, facts, replace(job, start=context.start))
    rows = [
        {"overrides": job_overrides, **asdict(outcome)}
        for job_overrides, outcome in zip(jobs, outcomes, strict=True)
    ]
    write_record(root, sweep, rows)
    print(summary.format_summary(outcomes, labels))
    # The table is printed first, so that an interrupted sweep also lists its jobs.
    if interruption:
        raise interruption
    if finish is not None:
        print(f"\n{finish(sweep, root, configs[0])}")
    return int(any(outcome.state in (JobState.FAILED, JobState.STOPPED) for outcome in outcomes))


def _any_device(config: Any) -> Any:
    """Return the config for a check on a machine that may lack the job's device."""
    return replace(config, device=replace(config.device, on_missing="skip"))


def _measure_job(threads: int | None, config: Any) -> tuple[float, int] | str:
    """Return the seconds and the bytes of memory of one job, or the reason for a failure."""
    try:
        seconds, memory = call_in_subprocess("brainseg.train:measure", config, threads)
    # The measurement fails where the job itself would, for example when memory is too small.
    except SubprocessFailed as error:
        return str(error)
    return seconds, memory


def _check_job(check_request: Callable, config: Any) -> Any:
    """Return the result of `check_request`. Raises RequestError, also for an unreadable file."""
    try:
        return check_request(config)
    except OSError as error:
        raise RequestError(str(error)) from error


def _run_single_job(config: Any, overrides: list[str], run: Callable) -> int:
    """Run a single job and return 1 if it failed, else 0.

    Raises RequestError, also for a reason that only the run could find, such as a folder in use.
    """
    log_to_stdout()
    outcome = run_job(run, config, Job(tuple(overrides)))
    return int(outcome.state == JobState.FAILED)


def log_to_stdout() -> None:
    """Print log messages of level INFO and above, without time and level.

    The run's own log.txt has both.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)


def _read_overrides(command: str, arguments: Any) -> list[str]:
    """Return the typed overrides, preceded by those of the run that `from` or `resume` names.

    Raises RequestError.
    """
    for name in REFUSED_FLAGS:
        check(
            not getattr(arguments, name, None),
            f"--{name.replace('_', '-')}",
            getattr(arguments, name, ""),
            "this flag of Hydra is not offered",
        )
    overrides = quote_text_values(command, arguments.overrides, sweeps=bool(arguments.multirun))
    if arguments.config_dir:
        check(
            os.path.isdir(arguments.config_dir),
            "--config-dir",
            arguments.config_dir,
            "no such folder",
        )
        search_path = quote_path(f"file://{Path(arguments.config_dir).resolve()}")
        overrides.insert(0, f"hydra.searchpath=[{search_path}]")
    source = _named_run(overrides)
    typed = values_by_setting(overrides)
    if source is None:
        check(
            "from" not in typed,
            "from",
            typed.get("from"),
            "must name a run",
            "for example from=runs/unet-0123456789",
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
            f"{source}/run.json: not what a run writes ({type(error).__name__}: {error}); "
            "give another run"
        ) from error
    hydra_overrides = [override for override in stored if is_hydra_setting(override)]
    check(
        not hydra_overrides,
        f"{source}/run.json",
        ", ".join(hydra_overrides),
        "a run never stores settings of Hydra",
        "give a run that brainseg trained",
    )
    if "from" not in typed:
        return quote_text_values(command, stored) + overrides
    # A run with a time budget stores how many steps fit into it. If no typed setting changes the
    # cost of a step, the repetition takes that number instead of timing the steps anew.
    same_steps = RunFolder(resolve_run(source, "from")).plan.is_file() and not drop_non_identity(
        typed, ("from", "seed", "split")
    )
    repeated_plan = [f"steps_of={quote_path(source)}"] if same_steps else []
    return (
        quote_text_values(command, without_settings(stored, ("steps_of",)))
        + repeated_plan
        + without_settings(overrides, ("from",))
    )


def _named_run(overrides: list[str]) -> str | None:
    """Return the run that `from=RUN` or `resume=RUN` names, or None if a new run is requested."""
    typed = values_by_setting(overrides)
    source = text_of(typed.get("from") or typed.get("resume") or "")
    return None if source in ("", "auto", "never", "null") else source


def add_option_prefixes(argv: list[str]) -> list[str]:
    """Return the arguments with Hydra's `++` before each setting that no dataclass lists.

    Examples are optimizer.options.momentum=0.9 and classes.core=2.
    """
    free_settings = (".options", "sequences.", "classes.")
    return [
        f"++{argument}"
        if any(name in setting_of(argument) for name in free_settings)
        and "=" in argument
        and argument[0] not in "+~-"
        else argument
        for argument in argv
    ]


def _refuse_flags(unknown: list[str]) -> None:
    """Raise RequestError for an unknown flag. argparse's own message offers no remedy."""
    if not unknown:
        return
    name, _, value = unknown[0].lstrip("-").partition("=")
    remedy = "--help lists the flags"
    if unknown[0].startswith("--") and name:
        setting = f"{name.replace('-', '_')}={value or 'VALUE'}"
        remedy = f"write the setting without dashes, as {setting}"
    raise RequestError(f"{unknown[0]}: no such flag; {remedy}")


def _exit_with_error(error: object) -> NoReturn:
    """Print an error in one line on stderr and exit with code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
