"""The arguments of a command line: flags, overrides, and those of the run that it names."""

import json
import os
from pathlib import Path
from typing import Any

from brainseg.config.compose import is_hydra_setting
from brainseg.config.overrides import setting_of, value_of, values_by_setting, without_settings
from brainseg.config.text import quote_path, quote_text_values, text_of
from brainseg.core.errors import RequestError, check
from brainseg.runs.find import resolve_last, resolve_run, stored_overrides
from brainseg.runs.identity import drop_non_identity
from brainseg.runs.run_folder import RunFolder

# Settings that name a run, for which `last` is the newest run.
RUN_SETTINGS = ("checkpoint", "run", "resume", "from", "steps_of", "initial", "baseline")
# --experimental-rerun unpickles a file, which can run any code. --shell-completion composes
# half-typed lines without checks and takes a second for each; `brainseg completion` replaces it.
REFUSED_FLAGS = ("config_path", "config_name", "experimental_rerun", "run", "shell_completion")


def read_overrides(command: str, arguments: Any) -> list[str]:
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
    overrides = [replace_last(override) for override in overrides]
    source = named_run(overrides)
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
    stored = _read_stored_overrides(source, "from" if "from" in typed else "resume")
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


def replace_last(override: str) -> str:
    """Return the override with the folder of the newest run in place of `last`.

    A run therefore never stores the word, whose meaning changes. Raises RequestError if there is no
    run.
    """
    name, run = setting_of(override), text_of(value_of(override))
    if name not in RUN_SETTINGS or (folder := resolve_last(run, name)) == run:
        return override
    return f"{name}={quote_path(folder)}"


def _read_stored_overrides(source: str, setting: str) -> list[str]:
    """Return the overrides of a run that `setting`, from or resume, names. Raises RequestError."""
    try:
        stored = [str(override) for override in stored_overrides(source, setting)]
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
    return stored


def named_run(overrides: list[str]) -> str | None:
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


def refuse_flags(unknown: list[str]) -> None:
    """Raise RequestError for an unknown flag. argparse's own message offers no remedy."""
    if not unknown:
        return
    name, _, value = unknown[0].lstrip("-").partition("=")
    remedy = "--help lists the flags"
    if unknown[0].startswith("--") and name:
        setting = f"{name.replace('-', '_')}={value or 'VALUE'}"
        remedy = f"write the setting without dashes, as {setting}"
    raise RequestError(f"{unknown[0]}: no such flag; {remedy}")
