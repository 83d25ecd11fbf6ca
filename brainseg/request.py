"""From the overrides of a request to the dataclass of each job, or to one line that says why not.

A config names things; it imports and runs nothing. Hydra by itself would run what a config says: `_target_` below a launcher,
a sweeper or a callback is called, so are the handlers of a logging config, `pkg://` in the search path imports a package,
and `hydra.job.env_set` reaches the programs that a job starts. So only a few of Hydra's settings are free, and all are checked.
"""

import difflib
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
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from brainseg import config as schema
from brainseg import launchers
from brainseg.config import TrainConfig
from brainseg.config.overrides import setting_of, value_of
from brainseg.errors import DataError, RequestError, check
from brainseg.signals import Signals

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, in a checkout
IMPORT_NOTHING = "configs name things, they import nothing"
# What a request may set below `hydra`; Hydra itself fills in the last two. Of `hydra.job` it numbers the jobs.
FREE = ("run", "sweep", "launcher", "sweeper", "searchpath", "overrides", "runtime")
FREE_OF_JOB = ("id", "num", "override_dirname")
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
BUILDERS = ("oc.create", "oc.decode")  # resolvers that turn text into config nodes, `_target_` included, behind every check


def compose_job(command: str, overrides: list[str]) -> Any:
    """Compose one job's dataclass from its overrides. Raises RequestError."""
    composed = compose_checked(command, overrides)
    with one_line(command), open_dict(composed):
        del composed["hydra"]
        _refuse_unknown(composed, schema.TYPES[command])
        OmegaConf.resolve(composed)  # which checks what a reference to a number puts in the place of a list or a dict; to_object does not
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise RequestError(f"{' and '.join(missing)} must be given, as {' '.join(f'{name}=...' for name in missing)}")
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
    check(not overruled, "epochs", config.epochs, f"max_minutes={config.max_minutes} overrules it",
          "add max_minutes=null to count epochs, or leave epochs out")


def compose_checked(command: str, overrides: list[str]) -> DictConfig:
    """What Hydra composes, its own node included, when nothing in it would run anything. Raises RequestError."""
    _refuse_before(overrides)
    # `sweep=` is a group of choices to train (conf/sweep) and a plain setting to compare, where Hydra would take it for the group.
    plain = [override for override in overrides if command != "train" and override.startswith("sweep=")]
    with one_line(command):
        composed = compose(command, [override for override in overrides if override not in plain], return_hydra_config=True)
        for override in OverridesParser.create().parse_overrides(plain):
            OmegaConf.update(composed, "sweep", override.value())
        _refuse_imports(composed, command)
    return composed


def compose_multirun(command: str, overrides: list[str]) -> DictConfig:
    """What Hydra composes for a sweep as a whole, checked as each of its jobs. Raises RequestError."""
    _refuse_before(overrides)
    with one_line(command):
        composed = GlobalHydra.instance().config_loader().load_configuration(command, overrides, RunMode.MULTIRUN)
        _refuse_imports(composed, command)
    return composed


def expand(command: str, overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, in Hydra's order (its own grammar: lists, `range`, `choice`, `glob`)."""
    composed = compose_multirun(command, overrides)
    with one_line(command):
        loader = GlobalHydra.instance().config_loader()
        params = composed.hydra.sweeper.get("params") or {}
        swept = [f"{key}={value}" for key, value in params.items()] + list(composed.hydra.overrides.task)
        own = [override for override in overrides if is_hydras(override) and not setting_of(override).startswith("hydra.sweeper.params")]
        batches = BasicSweeper.split_arguments(OverridesParser.create(loader).parse_overrides(swept), None)
        return [own + job for batch in batches for job in batch]


def is_hydras(override: str) -> bool:
    """Whether an override is of a setting of Hydra's own."""
    return setting_of(override).startswith(("hydra.", "hydra/", "hydra@")) or setting_of(override) == "hydra"


def _refuse_before(overrides: list[str]) -> None:
    """What has to be refused before Hydra composes, because composing would do it."""
    schema.register()
    launchers.register()
    for name in BUILDERS:
        OmegaConf.clear_resolver(name)
    for override in overrides:
        key = setting_of(override)
        check("_target_" not in override, key, value_of(override), IMPORT_NOTHING, "remove it")
        if key.split("@")[0].strip() != "hydra.searchpath":
            continue
        with one_line():
            (parsed,) = OverridesParser.create().parse_overrides([override])
            folders = parsed.value()
        for folder in folders if isinstance(folders, list) else [folders]:
            path = str(folder).removeprefix("file://")
            check("://" not in path, key, folder, IMPORT_NOTHING, "name folders")
            check(os.path.isdir(path), key, folder, "no such folder")  # pathlib's raises where the name is too long


def _refuse_imports(composed: DictConfig, command: str) -> None:
    """Refuse what Hydra would call: `_target_`, callbacks, foreign launchers, other logging, other environment variables."""
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    hydra = plain["hydra"]
    callbacks = hydra.get("callbacks")
    check(not callbacks, "hydra.callbacks", list(callbacks or ()), "callbacks run code of the config's choice", "remove them")
    _refuse_plugin(hydra["sweeper"], "sweeper", {SWEEPER: {"max_batch_size": None, "params": None}})
    _refuse_plugin(hydra["launcher"], "launcher", launchers.offered())
    check("_target_" not in repr(plain), "_target_", "found in the config", IMPORT_NOTHING, "remove it")
    own, found = _fixed_settings(command, JobRuntime().get("name")), _fixed(hydra)
    for key in sorted(key for key in own | found if own.get(key) != found.get(key)):
        raise RequestError(f"hydra.{key}={found.get(key)}: fixed here; of Hydra's settings {', '.join(FREE[:5])} are free")


def _refuse_plugin(settings: Any, part: str, offered: dict[str, dict[str, Any]]) -> None:
    """Refuse a launcher or sweeper that is not offered or not installed, or settings beyond those offered; takes `_target_` out."""
    target = settings.pop("_target_", None) if isinstance(settings, dict) else settings
    known = ", ".join(name.rpartition(".")[2] for name in offered)
    check(target in offered, f"hydra.{part}", target, "not offered", f"known: {known}")
    installed = target in Plugins.instance().class_name_to_class
    check(installed, f"hydra.{part}", target, "is not installed", "pip install 'brainseg[joblib]' or 'brainseg[submitit]'")
    for key, value in settings.items():
        name, rule = f"hydra.{part}.{key}", f"is not offered; of this {part} {', '.join(offered[target]) or 'nothing'} can be set"
        check(key in offered[target], name, value, rule)
        check(key not in launchers.FIXED or value == offered[target][key], name, value, "is fixed here")
        check(not isinstance(value, str) or value.isprintable(), name, ascii(value), "holds characters that cannot be printed")


@cache
def _fixed_settings(command: str, name: str) -> dict[str, Any]:
    """The settings of Hydra that a request must leave alone, as this command's own configs have them (`name`: Hydra's job)."""
    plain: Any = OmegaConf.to_container(compose(command, return_hydra_config=True), resolve=False)
    return _fixed(plain["hydra"])


def _fixed(hydra: dict[str, Any]) -> dict[str, Any]:
    job = {key: value for key, value in hydra["job"].items() if key not in FREE_OF_JOB}
    return schema.flatten({key: value for key, value in hydra.items() if key not in FREE} | {"job": job})


def _refuse_unknown(node: Any, kind: Any, prefix: str = "") -> None:
    """`+key=value` would add a setting that nothing reads; refuse it by name."""
    if not isinstance(node, DictConfig) or not is_dataclass(kind):
        return
    known = [field.name for field in fields(kind)]
    for key in map(str, node):
        name = f"{prefix}{key}"
        if key not in known:
            raise RequestError(f"{name}={node._get_node(key)}: no such setting; {nearest(name, known, prefix)}")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown(child, OmegaConf.get_type(child), f"{name}.")


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """The one of `known` that was meant, or all of them."""
    close = [one for one in known if one.rpartition(".")[2] == name][:1]  # lr is optimizer.lr
    close = close or difflib.get_close_matches(name, [prefix + one for one in known], n=1)
    close = close or difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _meant(group: str, choice: str, options: Sequence[str]) -> str:
    """What a choice that is not there may have meant, and a space; "" if nothing is like it."""
    same = [one for one in options if one.lower() == choice.lower()] or [one for one in options if (choice.lower(), one) == ("gpu", "cuda")]
    if close := same or difflib.get_close_matches(choice, options, n=1):
        return f"did you mean {close[0]}? "
    if group in ("model", "loss"):
        return f"for one of MONAI's, {group}=monai {group}.name={choice}; "
    return f"a file is data.path={choice}; " if group == "data" else ""


@cache
def settings(command: str) -> list[str]:
    """Every dotted setting that a command's default choices take."""
    return list(schema.flatten(OmegaConf.to_container(compose(command), throw_on_missing=False)))


@contextmanager
def one_line(command: str = "train") -> Iterator[None]:
    """Whatever Hydra and OmegaConf raise inside becomes a RequestError: one line that names setting, value, rule and remedy.

    A signal waits until they are done, a fraction of a second: an exception in their midst would come out as one of theirs.
    """
    try:
        with Signals() as signals:
            yield
        signals.poll()
    except (RequestError, DataError):
        raise
    except Exception as error:  # besides their own errors they let YAML's, the system's and plain Python's through
        raise RequestError(_explained(error, command)) from error


def _explained(error: Exception, command: str) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    cause = next(iter(str(error.__cause__ or "").splitlines()), "")
    if text[0].startswith("Could not override"):
        name, known = text[0].split("'")[1], settings(command)
        group, _, leaf = name.rpartition(".")
        if group in ("optimizer", "loss", "model") and not difflib.get_close_matches(name, known, cutoff=0.9):
            return f"{name}: no such setting; arguments of the {group} chosen go under {group}.options, as {group}.options.{leaf}=VALUE"
        return f"{name}: no such setting; {nearest(name, known)}"
    if "Could not find" in text[0] and "Available options" in str(error):
        listed = text[text.index(next(line for line in text if line.startswith("Available"))) + 1 :]
        options = listed[: next((i for i, line in enumerate(listed) if line.startswith("Config search")), None)]
        group, _, choice = text[0].split("'")[-2].rpartition("/")
        return f"{group}={choice}: no such choice; {_meant(group, choice, options)}known: {', '.join(options)}"
    if "Ambiguous value for argument" in text[0]:
        name, _, value = text[0].split("'")[1].partition("=")
        return f"{name}={value}: several values; a list is written in brackets, as '{name}=[{value}]', and a sweep over them begins with -m"
    if text[0].startswith("mismatched input '='"):
        return "a value that holds = is written in quotes, as 'NAME=\"a=b\"'"
    if text[0].startswith("Error parsing override") and "=" not in (given := text[0].split("'")[1]):
        return f"{given}: no setting and its value; write it as NAME={given}"
    if text[0].startswith("Error merging override"):
        return f"{text[0].removeprefix('Error merging override ')}: {cause.removesuffix('.')}"
    return f"the overrides cannot be read: {text[0]}" + (f" ({cause})" if cause and cause not in text[0] else "")
