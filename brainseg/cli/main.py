"""Entry point of all commands: compose and check every job of the request, then run the jobs.

Nothing is created before every job has passed the checks. An invalid request prints one line on
stderr and ends with exit code 2. `dry_run=true` stops after the checks and prints which jobs would
run. `dry_run=measure` also prints how long they would take.
"""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from brainseg.cli import help_text
from brainseg.cli.arguments import add_option_prefixes, read_overrides, refuse_flags
from brainseg.cli.train_request import check_job, run_train_request
from brainseg.config.compose import CONFIGS, check_output, compose_checked, compose_job
from brainseg.core.errors import DataError, RequestError, check, shorten_error
from brainseg.core.output import ignoring_closed_output
from brainseg.core.signals import Interrupted, interrupt_on_signals

# Flags that print a page instead of running the command. All but "help" are Hydra's own.
PAGES = ("help", "hydra_help", "cfg", "info")
# Commands that accept -v.
COMMANDS_THAT_TRAIN = ("train", "search")


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
    parser.add_argument("-v", "--verbose", action="store_true")
    # Flags may stand anywhere among the overrides.
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    try:
        # While a run trains, its own handlers are in force, which save it before it stops.
        with interrupt_on_signals():
            refuse_flags(unknown)
            if arguments.verbose and command not in COMMANDS_THAT_TRAIN:
                raise RequestError(f"-v: {command} prints no more with it; leave it out")
            overrides = read_overrides(command, arguments)
            if any(getattr(arguments, page) for page in PAGES):
                flags = [argument for argument in argv if argument not in arguments.overrides]
                code = _print_page(command, flags, overrides)
            else:
                with initialize_config_dir(str(CONFIGS), job_name=command, version_base="1.3"):
                    code = (
                        run_train_request(overrides, arguments, run, check_request, finish)
                        if command == "train"
                        else _run_plain_command(
                            command, overrides, arguments.multirun, run, check_request
                        )
                    )
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


def _run_plain_command(
    command: str, overrides: list[str], multirun: bool, run: Callable, check_request: Callable
) -> int:
    """Check and run a command other than train, and return its exit code."""
    if multirun:
        raise RequestError("-m: only brainseg.train takes a sweep")
    config = compose_job(command, overrides)
    check_output(command, config)
    check_job(check_request, config)
    try:
        return run(config) or 0
    # The message may be a report of many lines. A network that outputs NaN raises
    # FloatingPointError.
    except (DataError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _exit_with_error(error: object) -> NoReturn:
    """Print an error in one line on stderr and exit with code 2."""
    print(f"error: {shorten_error(error, None)}", file=sys.stderr)
    sys.exit(2)
