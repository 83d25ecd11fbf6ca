"""Composition of a request: from its overrides to the dataclass of each job, or a one-line error.

A config names things, and never imports or runs code. Hydra alone would run code named by a
config. It calls `_target_` below a launcher, a sweeper or a callback, and the handlers of a logging
config. `pkg://` in the search path imports a package, and `hydra.job.env_set` reaches the programs
that a job starts. Therefore only a few of Hydra's settings can be changed, and all are checked.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from brainseg import config as schema
from brainseg.config import TrainConfig, launchers
from brainseg.config.hydra_errors import (
    explain_error,
    explain_missing_value,
    explain_several_values,
    explain_unreadable,
    suggest_setting,
)
from brainseg.config.overrides import setting_of, value_of, values_by_setting
from brainseg.config.text import text_of
from brainseg.core.errors import DataError, RequestError, check
from brainseg.core.signals import Signals

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# A wheel has the configs within the package, a checkout beside it.
CONFIGS = (
    PACKAGE_FOLDER / "conf"
    if (PACKAGE_FOLDER / "conf").is_dir()
    else PACKAGE_FOLDER.parent / "conf"
)
NO_IMPORTS = "configs hold names, and can import nothing"
# A request may set these below `hydra`. Hydra itself fills in the last two. Below `hydra.job`,
# Hydra numbers the jobs.
FREE_SETTINGS = ("run", "sweep", "launcher", "sweeper", "searchpath", "overrides", "runtime")
FREE_JOB_SETTINGS = ("id", "num", "override_dirname")
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Hydra writes its own log to these folders. A user who sets one of them means the run folder.
HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
# These commands write a folder named by `output`.
COMMANDS_WITH_FOLDER = ("train", "evaluate", "predict", "compare")
# These resolvers turn text into config nodes, `_target_` included, after every check.
NODE_RESOLVERS = ("oc.create", "oc.decode")


def compose_job(command: str, overrides: list[str]) -> Any:
    """Return the config of one job of a command, composed from its overrides.

    Call this while Hydra is initialised with the folder of configs. A config that varies settings,
    such as sweep=architecture, is rejected unless the overrides give each of them a value, as those
    of a sweep's job do: the defaults would be trained. Raises RequestError, DataError for an
    unreadable run that the request names.
    """
    for override in overrides:
        # A config is resolved when it is composed, and again when it is restored. The second time
        # an escaped reference would become a real one.
        has_reference = "\\${" in override and not is_hydra_setting(override)
        check(
            not has_reference,
            setting_of(override),
            text_of(value_of(override)),
            "must not contain ${",
            "use another name",
        )
    composed = compose_checked(command, overrides)
    values = values_by_setting(overrides)
    params = map(setting_of, composed.hydra.sweeper.get("params") or {})
    varied = [name for name in params if name not in values]
    if varied:
        source = next(
            (
                f"{name}={value}"
                for name, value in values.items()
                if name in ("sweep", "experiment")
            ),
            "config",
        )
        raise RequestError(f"{source}: varies {', '.join(varied)}; to run a sweep, put -m first")
    with as_request_errors(command, overrides), open_dict(composed):
        del composed["hydra"]
        _refuse_unknown(composed, schema.TYPES[command])
        # Resolving checks the type of the value that replaces a reference, for example a number
        # in place of a list. OmegaConf.to_object does not check this.
        OmegaConf.resolve(composed)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            examples = " ".join(f"{name}=..." for name in missing)
            raise RequestError(f"{' and '.join(missing)} must be given; add {examples}")
        job: Any = OmegaConf.to_object(composed)
        schema.check_group_choices(job)
    for name, value in schema.flatten(asdict(job)).items():
        texts = value if isinstance(value, list) else [value]
        is_printable = all(text.isprintable() for text in texts if isinstance(text, str))
        rule = "contains characters that cannot be printed"
        check(is_printable, name, ascii(value), rule, "remove them")
    return job


def check_budget(typed: Iterable[str], config: TrainConfig) -> None:
    """Raise RequestError if epochs were typed while another limit replaces them.

    The time budget may come from an experiment, or from the run that `from` or `resume` names. A
    time budget that was typed, too, is accepted.
    """
    names = {setting_of(override) for override in typed}
    limits = ["max_steps"] if "max_minutes" in names else ["max_steps", "max_minutes"]
    for limit in limits:
        value = getattr(config, limit)
        check(
            "epochs" not in names or value is None,
            "epochs",
            config.epochs,
            f"has no effect with {limit}={value}",
            f"add {limit}=null to count epochs, or leave out epochs",
        )


def check_output(command: str, config: Any) -> None:
    """Raise RequestError if the `output` folder cannot be created.

    A file may be in its place, or its parent folder may not be writable.
    """
    output = getattr(config, "output", None)
    if output is None or command not in COMMANDS_WITH_FOLDER:
        return
    path = Path(os.path.abspath(output))
    try:
        # The folders between this one and `path` would be created.
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:
        raise RequestError(
            f"output={output}: cannot be created ({error.strerror}); choose another folder"
        ) from error
    rule = "is a file" if existing == path else f"cannot be created, because {existing} is a file"
    check(existing.is_dir(), "output", output, rule, "choose a folder")
    check(
        os.access(existing, os.W_OK | os.X_OK),
        "output",
        output,
        f"no permission to write in {existing}",
        "choose another folder",
    )


def compose_checked(command: str, overrides: list[str]) -> DictConfig:
    """Return the config that Hydra composes, with Hydra's own node.

    Raises RequestError if the config is invalid or would run code.
    """
    _refuse_unsafe_overrides(command, overrides)
    for parsed in parse_overrides(command, overrides):
        if parsed.is_sweep_override():
            raise RequestError(
                explain_several_values(
                    parsed.get_key_element().lstrip("+"), parsed.get_value_string(), command
                )
            )
    # `sweep=` is a config group of train (conf/sweep) and a plain setting of compare. Hydra would
    # take the setting of compare for the group, so it is set after the composition.
    plain = [
        override for override in overrides if command != "train" and override.startswith("sweep=")
    ]
    with as_request_errors(command, overrides):
        composed = compose(
            command,
            [override for override in overrides if override not in plain],
            return_hydra_config=True,
        )
        for override in OverridesParser.create().parse_overrides(plain):
            OmegaConf.update(composed, "sweep", override.value())
        _refuse_code(composed, command, overrides)
    return composed


def compose_multirun(command: str, overrides: list[str]) -> DictConfig:
    """Return the config that Hydra composes for a whole sweep. Raises RequestError.

    The checks are those of each job.
    """
    _refuse_unsafe_overrides(command, overrides)
    parse_overrides(command, overrides)
    with as_request_errors(command, overrides):
        loader = GlobalHydra.instance().config_loader()
        composed = loader.load_configuration(command, overrides, RunMode.MULTIRUN)
        _refuse_code(composed, command, overrides)
    return composed


def expand_sweep(command: str, overrides: list[str]) -> tuple[DictConfig, list[list[str]]]:
    """Return the config of a whole sweep, and the overrides of each job in Hydra's order.

    The grammar is Hydra's: lists, `range`, `choice`, `glob`. Raises RequestError.
    """
    composed = compose_multirun(command, overrides)
    with as_request_errors(command, overrides):
        loader = GlobalHydra.instance().config_loader()
        params = composed.hydra.sweeper.get("params") or {}
        swept = [f"{key}={value}" for key, value in params.items()]
        swept += list(composed.hydra.overrides.task)
        # Each job is composed by itself, so it needs Hydra's settings, such as the search path.
        hydra_overrides = [
            override
            for override in overrides
            if is_hydra_setting(override)
            and not setting_of(override).startswith("hydra.sweeper.params")
        ]
        parsed = OverridesParser.create(loader).parse_overrides(swept)
        for override in parsed:
            check(
                not override.is_interval_sweep(),
                override.get_key_element(),
                override.get_value_string(),
                "an interval does not list the values of a sweep",
                "list values, or use range(...) or brainseg.search",
            )
        batches = BasicSweeper.split_arguments(parsed, None)
        return composed, [hydra_overrides + job for batch in batches for job in batch]


def task_overrides(overrides: list[str]) -> list[str]:
    """Return the overrides without those of Hydra's own settings."""
    return [override for override in overrides if not is_hydra_setting(override)]


def is_hydra_setting(override: str) -> bool:
    """Return True if an override changes one of Hydra's own settings."""
    return (
        setting_of(override).startswith(("hydra.", "hydra/", "hydra@"))
        or setting_of(override) == "hydra"
    )


def parse_overrides(command: str, overrides: list[str]) -> list[Override]:
    """Return the overrides as Hydra parses them.

    Raises RequestError for an override that has no value or cannot be parsed.
    """
    parser, parsed = OverridesParser.create(), []
    for number, override in enumerate(overrides):
        following = overrides[number + 1 :]
        # An override that removes a setting, ~NAME, needs no value.
        if "=" not in override.lstrip("=") and not override.startswith("~"):
            raise RequestError(explain_missing_value(override, following))
        with as_request_errors(command, overrides):
            try:
                parsed.append(parser.parse_override(override))
            except HydraException as error:
                raise RequestError(explain_unreadable(override, following, command)) from error
    return parsed


def _refuse_unsafe_overrides(command: str, overrides: list[str]) -> None:
    """Raise RequestError for overrides that must not reach Hydra, because composing runs code.

    Overrides of Hydra's folders are rejected too, because they do not set the run folder.
    """
    schema.register_schema()
    launchers.register_launchers()
    # Without these resolvers, text cannot become a config node after the checks.
    for name in NODE_RESOLVERS:
        OmegaConf.clear_resolver(name)
    for override in overrides:
        key = setting_of(override)
        value = value_of(override)
        check("_target_" not in override, key, value, NO_IMPORTS, "remove it")
        check(
            key not in HYDRA_FOLDERS,
            key,
            value,
            "sets Hydra's folder, not the run folder",
            f"write output={value}",
        )
        is_group = override.startswith("+") and key.isidentifier() and (CONFIGS / key).is_dir()
        check(not is_group, f"+{key}", value, f"{key} exists already", f"write {key}={value}")
        if key.split("@")[0].strip() != "hydra.searchpath":
            continue
        (parsed,) = parse_overrides(command, [override])
        folders: Any = parsed.value()
        for folder in folders if isinstance(folders, list) else [folders]:
            path = str(folder).removeprefix("file://").replace("\\${", "${")
            check("://" not in path, key, folder, NO_IMPORTS, "name folders")
            # Path.is_dir raises an error if the name is too long.
            check(os.path.isdir(path), key, folder, "no such folder")


def _refuse_code(composed: DictConfig, command: str, overrides: list[str]) -> None:
    """Raise RequestError for everything in a config that Hydra would call.

    This covers `_target_`, callbacks, launchers that are not offered, and other settings for
    logging or environment variables. Without an override of Hydra's own settings, which include
    the search path, the config is composed of this project's files alone. Its fixed settings are
    then right, and the comparison, which composes the config once more, is left out.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    hydra = plain["hydra"]
    callbacks = hydra.get("callbacks")
    check(
        not callbacks,
        "hydra.callbacks",
        list(callbacks or ()),
        "callbacks would run code that the config names",
        "remove them",
    )
    _refuse_plugin(hydra["sweeper"], "sweeper", {SWEEPER: {"max_batch_size": None, "params": None}})
    _refuse_plugin(hydra["launcher"], "launcher", launchers.offered_settings())
    # _refuse_plugin has removed the checked targets, so any that is left is not allowed.
    has_target = "_target_" in repr(plain)
    check(not has_target, "_target_", "found in the config", NO_IMPORTS, "remove it")
    if not any("hydra" in setting_of(override) for override in overrides):
        return
    defaults, values = (
        _default_fixed_values(command, JobRuntime().get("name")),
        _fixed_values(hydra),
    )
    for key in sorted(key for key in defaults | values if defaults.get(key) != values.get(key)):
        raise RequestError(
            f"hydra.{key}={values.get(key)}: cannot be changed; "
            f"of Hydra's settings only {', '.join(FREE_SETTINGS[:5])} can be set"
        )


def _refuse_plugin(settings: Any, part: str, offered: dict[str, dict[str, Any]]) -> None:
    """Raise RequestError for a launcher or sweeper that is not offered or not installed.

    Settings beyond those offered are rejected as well. `_target_` is removed from `settings`.
    """
    target = settings.pop("_target_", None) if isinstance(settings, dict) else settings
    classes = ", ".join(name.rpartition(".")[2] for name in offered)
    check(target in offered, f"hydra.{part}", target, "not offered", f"known: {classes}")
    is_installed = target in Plugins.instance().class_name_to_class or (
        target in (launchers.LOCAL, launchers.SLURM, launchers.RAY)
        and find_spec(target.partition(".")[0]) is not None
    )
    check(
        is_installed,
        f"hydra/{part}",
        launchers.launcher_name(target) if part == "launcher" else target,
        "is not installed",
        "in a clone, pip install -e '.[joblib]', '.[submitit]' or '.[ray]'",
    )
    for key, value in settings.items():
        name = f"hydra.{part}.{key}"
        names = ", ".join(offered[target]) or "nothing"
        rule = f"is not offered; of this {part} only {names} can be set"
        check(key in offered[target], name, value, rule)
        is_default = value == offered[target][key]
        check(key not in launchers.FIXED_SETTINGS or is_default, name, value, "cannot be changed")
        # Submitit writes text settings into the job script.
        check(
            not isinstance(value, str) or value.isprintable(),
            name,
            ascii(value),
            "contains characters that cannot be printed",
        )


@cache
def _default_fixed_values(command: str, name: str) -> dict[str, Any]:
    """Return the values that a request must not change, from this command's own configs.

    `name` is the name of Hydra's job, which is part of the values and so of the cache's key.
    """
    plain: Any = OmegaConf.to_container(compose(command, return_hydra_config=True), resolve=False)
    return _fixed_values(plain["hydra"])


def _fixed_values(hydra: dict[str, Any]) -> dict[str, Any]:
    """Return the values of Hydra's settings that a request must not change."""
    job = {key: value for key, value in hydra["job"].items() if key not in FREE_JOB_SETTINGS}
    return schema.flatten(
        {key: value for key, value in hydra.items() if key not in FREE_SETTINGS} | {"job": job}
    )


def _refuse_unknown(node: Any, kind: Any, prefix: str = "") -> None:
    """Raise RequestError for a setting that `+key=value` added and that nothing reads."""
    if not isinstance(node, DictConfig) or not is_dataclass(kind):
        return
    names = [field.name for field in fields(kind)]
    for key in map(str, node):
        name = f"{prefix}{key}"
        if key not in names:
            suggestion = suggest_setting(name, names, prefix)
            raise RequestError(f"{name}={node._get_node(key)}: no such setting; {suggestion}")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown(child, OmegaConf.get_type(child), f"{name}.")


@contextmanager
def as_request_errors(command: str = "train", overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turn exceptions of Hydra and OmegaConf in the block into a one-line RequestError.

    The message names setting, value, rule and remedy. A signal waits until the block has ended,
    which takes a fraction of a second. Raised within the libraries, its exception would come out
    as one of theirs.
    """
    try:
        with Signals() as signals:
            yield
        signals.poll()
    except (RequestError, DataError):
        raise
    # Besides their own exceptions, the libraries pass on those of YAML, of the system and of
    # Python.
    except Exception as error:
        raise RequestError(explain_error(error, command, overrides)) from error
