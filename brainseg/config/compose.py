"""From the overrides of a request to the dataclass of each job, or to one line that says why not.

A config names things; it imports and runs nothing. Hydra by itself would run what a config says: `_target_` below a launcher,
a sweeper or a callback is called, so are the handlers of a logging config, `pkg://` in the search path imports a package,
and `hydra.job.env_set` reaches the programs that a job starts. So only a few of Hydra's settings are free, and all are checked.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from functools import cache
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

HERE = Path(__file__).resolve().parents[1]
CONFIGS = (
    HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
)  # in a wheel, in a checkout
IMPORT_NOTHING = "configs name things, they import nothing"
# What a request may set below `hydra`; Hydra itself fills in the last two. Of `hydra.job` it numbers the jobs.
FREE = ("run", "sweep", "launcher", "sweeper", "searchpath", "overrides", "runtime")
FREE_OF_JOB = ("id", "num", "override_dirname")
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Hydra keeps its own log there, and who sets one of these means the folder of the run.
HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
FOLDERS_WRITTEN = ("train", "evaluate", "predict", "compare")  # by these commands into `output`
BUILDERS = (
    "oc.create",
    "oc.decode",
)  # resolvers that turn text into config nodes, `_target_` included, behind every check


def compose_job(command: str, overrides: list[str], of_sweep: bool = False) -> Any:
    """Compose one job's dataclass from its overrides. Raises RequestError.

    A config that varies settings is refused unless the job is one `of_sweep`: alone it would train with the defaults.
    """
    for override in overrides:
        # A config is resolved when it is composed and again when it is read back: the second time this would be a reference.
        literal = "\\${" in override and not is_hydra_setting(override)
        check(
            not literal,
            setting_of(override),
            text_of(value_of(override)),
            "no name may hold ${",
            "use another name",
        )
    composed = compose_checked(command, overrides)
    varied = composed.hydra.sweeper.get("params")
    if varied and not of_sweep:
        chosen = next(
            (
                f"{name}={value}"
                for name, value in values_by_setting(overrides).items()
                if name in ("sweep", "experiment")
            ),
            "config",
        )
        raise RequestError(
            f"{chosen}: varies {', '.join(varied)}, which only a sweep does; put -m first"
        )
    with as_request_errors(command, overrides), open_dict(composed):
        del composed["hydra"]
        _refuse_unknown(composed, schema.TYPES[command])
        OmegaConf.resolve(
            composed
        )  # which checks what a reference to a number puts in the place of a list or a dict; to_object does not
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise RequestError(
                f"{' and '.join(missing)} must be given, as {' '.join(f'{name}=...' for name in missing)}"
            )
        job: Any = OmegaConf.to_object(composed)
        schema.check_chosen(job)
    for name, value in schema.flatten(asdict(job)).items():
        texts = value if isinstance(value, list) else [value]
        fine = all(text.isprintable() for text in texts if isinstance(text, str))
        check(fine, name, ascii(value), "holds characters that cannot be printed", "remove them")
    return job


def check_budget(typed: Iterable[str], config: TrainConfig) -> None:
    """Refuse epochs that the minutes of an experiment, or of the run that `from` or `resume` names, would overrule. Raises RequestError."""
    given = {setting_of(override) for override in typed}
    overruled = "epochs" in given and "max_minutes" not in given and config.max_minutes is not None
    check(
        not overruled,
        "epochs",
        config.epochs,
        f"max_minutes={config.max_minutes} overrules it",
        "add max_minutes=null to count epochs, or leave epochs out",
    )


def check_output(command: str, config: Any) -> None:
    """Refuse an `output` folder that cannot be made, because a file is in its place or its parent is closed. Raises RequestError."""
    output = getattr(config, "output", None)
    if output is None or command not in FOLDERS_WRITTEN:
        return
    path = Path(os.path.abspath(output))
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:
        raise RequestError(
            f"output={output}: cannot be made ({error.strerror}); give another folder"
        ) from error
    check(
        there.is_dir(),
        "output",
        output,
        f"{'is' if there == path else f'{there} is'} a file",
        "give a folder",
    )
    check(
        os.access(there, os.W_OK | os.X_OK),
        "output",
        output,
        f"nothing can be written in {there}",
        "give another folder",
    )


def compose_checked(command: str, overrides: list[str]) -> DictConfig:
    """What Hydra composes, its own node included, when nothing in it would run anything. Raises RequestError."""
    _refuse_before(command, overrides)
    for parsed in parse_overrides(command, overrides):
        if parsed.is_sweep_override():
            raise RequestError(
                explain_several_values(
                    parsed.get_key_element().lstrip("+"), parsed.get_value_string(), command
                )
            )
    # `sweep=` is a group of choices to train (conf/sweep) and a plain setting to compare, where Hydra would take it for the group.
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
        _refuse_imports(composed, command, overrides)
    return composed


def compose_multirun(command: str, overrides: list[str]) -> DictConfig:
    """What Hydra composes for a sweep as a whole, checked as each of its jobs. Raises RequestError."""
    _refuse_before(command, overrides)
    parse_overrides(command, overrides)
    with as_request_errors(command, overrides):
        composed = (
            GlobalHydra.instance()
            .config_loader()
            .load_configuration(command, overrides, RunMode.MULTIRUN)
        )
        _refuse_imports(composed, command, overrides)
    return composed


def expand_sweep(command: str, overrides: list[str]) -> tuple[DictConfig, list[list[str]]]:
    """Return what Hydra composes for a sweep as a whole, and the overrides of each of its jobs, in Hydra's order.

    The grammar is Hydra's: lists, `range`, `choice`, `glob`. Raises RequestError.
    """
    composed = compose_multirun(command, overrides)
    with as_request_errors(command, overrides):
        loader = GlobalHydra.instance().config_loader()
        params = composed.hydra.sweeper.get("params") or {}
        swept = [f"{key}={value}" for key, value in params.items()] + list(
            composed.hydra.overrides.task
        )
        own = [
            text
            for text in overrides
            if is_hydra_setting(text) and not setting_of(text).startswith("hydra.sweeper.params")
        ]
        parsed = OverridesParser.create(loader).parse_overrides(swept)
        for override in parsed:
            check(
                not override.is_interval_sweep(),
                override.get_key_element(),
                override.get_value_string(),
                "an interval has no values to run",
                "give values or range(...), or take brainseg.search",
            )
        batches = BasicSweeper.split_arguments(parsed, None)
        return composed, [own + job for batch in batches for job in batch]


def task_overrides(overrides: list[str]) -> list[str]:
    """Return the overrides less those of Hydra's own settings."""
    return [override for override in overrides if not is_hydra_setting(override)]


def is_hydra_setting(override: str) -> bool:
    """Whether an override is of a setting of Hydra's own."""
    return (
        setting_of(override).startswith(("hydra.", "hydra/", "hydra@"))
        or setting_of(override) == "hydra"
    )


def parse_overrides(command: str, overrides: list[str]) -> list[Override]:
    """Return the overrides as Hydra parses them. Raises RequestError for one that has no value or cannot be parsed."""
    parser, parsed = OverridesParser.create(), []
    for number, override in enumerate(overrides):
        following = overrides[number + 1 :]
        if "=" not in override.lstrip("=") and not override.startswith("~"):
            raise RequestError(explain_missing_value(override, following))
        with as_request_errors(command, overrides):
            try:
                parsed.append(parser.parse_override(override))
            except HydraException as error:
                raise RequestError(explain_unreadable(override, following, command)) from error
    return parsed


def _refuse_before(command: str, overrides: list[str]) -> None:
    """Refuse what must not reach Hydra, because composing would run it, and folders that hold no run. Raises RequestError."""
    schema.register_schema()
    launchers.register_launchers()
    for name in BUILDERS:
        OmegaConf.clear_resolver(name)
    for override in overrides:
        key = setting_of(override)
        check("_target_" not in override, key, value_of(override), IMPORT_NOTHING, "remove it")
        value = value_of(override)
        check(
            key not in HYDRAS_FOLDERS,
            key,
            value,
            "is Hydra's folder, not that of the run",
            f"write output={value}",
        )
        added = override.startswith("+") and key.isidentifier() and (CONFIGS / key).is_dir()
        check(not added, f"+{key}", value, f"{key} has a default", f"write {key}={value}")
        if key.split("@")[0].strip() != "hydra.searchpath":
            continue
        (parsed,) = parse_overrides(command, [override])
        folders: Any = parsed.value()
        for folder in folders if isinstance(folders, list) else [folders]:
            path = str(folder).removeprefix("file://").replace("\\${", "${")
            check("://" not in path, key, folder, IMPORT_NOTHING, "name folders")
            check(
                os.path.isdir(path), key, folder, "no such folder"
            )  # pathlib's raises where the name is too long


def _refuse_imports(composed: DictConfig, command: str, overrides: list[str]) -> None:
    """Refuse what Hydra would call: `_target_`, callbacks, foreign launchers, other logging, other environment variables.

    Without an override of Hydra's own settings, of which the search path is one, the config is composed of our files alone. Then
    its fixed settings are right, and need not be composed once more for a comparison.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    hydra = plain["hydra"]
    callbacks = hydra.get("callbacks")
    check(
        not callbacks,
        "hydra.callbacks",
        list(callbacks or ()),
        "callbacks run code of the config's choice",
        "remove them",
    )
    _refuse_plugin(hydra["sweeper"], "sweeper", {SWEEPER: {"max_batch_size": None, "params": None}})
    _refuse_plugin(hydra["launcher"], "launcher", launchers.offered_settings())
    check(
        "_target_" not in repr(plain),
        "_target_",
        "found in the config",
        IMPORT_NOTHING,
        "remove it",
    )
    if not any("hydra" in setting_of(override) for override in overrides):
        return
    own, found = _fixed_settings(command, JobRuntime().get("name")), _fixed(hydra)
    for key in sorted(key for key in own | found if own.get(key) != found.get(key)):
        raise RequestError(
            f"hydra.{key}={found.get(key)}: fixed here; of Hydra's settings {', '.join(FREE[:5])} are free"
        )


def _refuse_plugin(settings: Any, part: str, offered: dict[str, dict[str, Any]]) -> None:
    """Refuse a launcher or sweeper that is not offered or not installed, or settings beyond those offered; takes `_target_` out."""
    target = settings.pop("_target_", None) if isinstance(settings, dict) else settings
    known = ", ".join(name.rpartition(".")[2] for name in offered)
    check(target in offered, f"hydra.{part}", target, "not offered", f"known: {known}")
    installed = target in Plugins.instance().class_name_to_class
    check(
        installed,
        f"hydra.{part}",
        target,
        "is not installed",
        "pip install 'brainseg[joblib]' or 'brainseg[submitit]'",
    )
    for key, value in settings.items():
        name, rule = (
            f"hydra.{part}.{key}",
            f"is not offered; of this {part} {', '.join(offered[target]) or 'nothing'} can be set",
        )
        check(key in offered[target], name, value, rule)
        check(
            key not in launchers.FIXED or value == offered[target][key],
            name,
            value,
            "is fixed here",
        )
        check(
            not isinstance(value, str) or value.isprintable(),
            name,
            ascii(value),
            "holds characters that cannot be printed",
        )


@cache
def _fixed_settings(command: str, name: str) -> dict[str, Any]:
    """The settings of Hydra that a request must leave alone, as this command's own configs have them (`name`: Hydra's job)."""
    plain: Any = OmegaConf.to_container(compose(command, return_hydra_config=True), resolve=False)
    return _fixed(plain["hydra"])


def _fixed(hydra: dict[str, Any]) -> dict[str, Any]:
    job = {key: value for key, value in hydra["job"].items() if key not in FREE_OF_JOB}
    return schema.flatten(
        {key: value for key, value in hydra.items() if key not in FREE} | {"job": job}
    )


def _refuse_unknown(node: Any, kind: Any, prefix: str = "") -> None:
    """`+key=value` would add a setting that nothing reads; refuse it by name."""
    if not isinstance(node, DictConfig) or not is_dataclass(kind):
        return
    known = [field.name for field in fields(kind)]
    for key in map(str, node):
        name = f"{prefix}{key}"
        if key not in known:
            raise RequestError(
                f"{name}={node._get_node(key)}: no such setting; {suggest_setting(name, known, prefix)}"
            )
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown(child, OmegaConf.get_type(child), f"{name}.")


@contextmanager
def as_request_errors(command: str = "train", overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise inside into a RequestError: one line with setting, value, rule and remedy.

    A signal waits until they are done, a fraction of a second: an exception in their midst would come out as one of theirs.
    """
    try:
        with Signals() as signals:
            yield
        signals.poll()
    except (RequestError, DataError):
        raise
    except (
        Exception
    ) as error:  # besides their own errors they let YAML's, the system's and plain Python's through
        raise RequestError(explain_error(error, command, overrides)) from error
