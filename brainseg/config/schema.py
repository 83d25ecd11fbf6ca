"""Registration of the settings with Hydra, and restoring a stored config as settings."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, cast, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.config.data import FileSplitConfig, HoldoutConfig, KFoldConfig, SplitConfig
from brainseg.config.evaluate import EvaluateConfig, VerifyConfig
from brainseg.config.model import ModelConfig, UNetConfig
from brainseg.config.predict import ExportConfig, PredictConfig
from brainseg.config.prepare import PrepareConfig
from brainseg.config.results import CompareConfig, RegisterConfig, UiConfig
from brainseg.config.scheduler import (
    CosineConfig,
    OneCycleConfig,
    PlateauConfig,
    SchedulerConfig,
    StepConfig,
)
from brainseg.config.search import SearchConfig
from brainseg.config.train import TrainConfig
from brainseg.core.errors import RequestError, check

# Groups whose choices have settings of their own. The class under "any" holds the settings that
# all choices of the group share. Choices not listed here have no others.
CHOICES: dict[str, dict[str, type]] = {
    "split": {
        "holdout": HoldoutConfig,
        "kfold": KFoldConfig,
        "file": FileSplitConfig,
        "any": SplitConfig,
    },
    "model": {"unet": UNetConfig, "any": ModelConfig},
    "scheduler": {
        "any": SchedulerConfig,
        "none": SchedulerConfig,
        "step": StepConfig,
        "cosine": CosineConfig,
        "one_cycle": OneCycleConfig,
        "plateau": PlateauConfig,
    },
}
TYPES: dict[str, type] = {
    "train": TrainConfig,
    "search": SearchConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "verify": VerifyConfig,
    "predict": PredictConfig,
    "compare": CompareConfig,
    "register": RegisterConfig,
    "export": ExportConfig,
    "ui": UiConfig,
}


@cache
def register_schema() -> None:
    """Register the dataclasses with Hydra, as schemas of the files in conf/.

    conf/<command>.yaml starts from `schema/<command>`, and a choice starts from
    `schema/<group>/<choice>`.
    """
    store = ConfigStore.instance()
    for command, node in TYPES.items():
        store.store(group="schema", name=command, node=node, package="_global_")
    for group, nodes in CHOICES.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def check_group_choices(config: Any) -> None:
    """Raise RequestError if a choice was made by its name alone, for example scheduler.name=step.

    The other settings of the group would still be those of another choice.
    """
    for group, nodes in CHOICES.items():
        node = getattr(config, group, None)
        if node is not None:
            fits = type(node) is nodes.get(node.name, nodes["any"])
            rule = f"the settings of {group} are those of another choice"
            # Only models have names that are no choices: the classes of other libraries.
            library = "smp" if node.name.startswith("smp.") else "monai"
            choice = (
                f"{group}={node.name}"
                if node.name in nodes or group != "model"
                else f"model={library} model.name={node.name}"
            )
            check(fits, f"{group}.name", node.name, rule, f"choose it as {choice}")


def group_of(hint: Any) -> type | None:
    """Return the dataclass in a field's type, or None if the field is not a group of settings."""
    return next(
        (kind for kind in (hint, *get_args(hint)) if is_dataclass(kind) and isinstance(kind, type)),
        None,
    )


def setting_types(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the type of each setting below a dataclass.

    The settings of all choices of a group are included.
    """
    for name, hint in get_type_hints(kind).items():
        if group := group_of(hint):
            # Several choices may share one class, whose settings are yielded once.
            for choice in dict.fromkeys([group, *CHOICES.get(name, {}).values()]):
                yield from setting_types(choice, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {dotted name: value}.

    A list is a value. An empty dict has no entry in the result.
    """
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {
        name: leaf
        for key, value in settings.items()
        for name, leaf in flatten(value, f"{prefix}{key}.").items()
    }


def restore_config(stored: Any) -> TrainConfig:
    """Return the dataclass of a config stored as plain containers in a run folder or checkpoint.

    All checks run again, because the file may come from an untrusted source. Raises RequestError
    if the content is not a config of `brainseg.train`.
    """
    rule = "not a config stored by brainseg.train"
    check(isinstance(stored, dict), "config", type(stored).__name__, rule)
    # References were resolved when the config was stored, so a reference found here was added
    # later. A `_target_` could name code to run.
    text = repr(stored)
    is_plain = "${" not in text and "_target_" not in text
    check(is_plain, "config", "...", f"contains a reference or _target_, so it is {rule}")
    data = stored.get("data")
    if isinstance(data, dict) and "volume" in data:
        # The earlier name of `data.channel`.
        remaining = {name: value for name, value in data.items() if name != "volume"}
        stored = stored | {"data": {"channel": data["volume"], **remaining}}
    try:
        base = OmegaConf.structured(TrainConfig)
        # Each group starts from the class of its stored choice, so that OmegaConf knows the types
        # of its settings.
        for group, nodes in CHOICES.items():
            name = stored.get(group, {}).get("name")
            OmegaConf.update(
                base, group, OmegaConf.structured(nodes.get(name, nodes["any"])), merge=False
            )
        return cast(TrainConfig, OmegaConf.to_object(OmegaConf.merge(base, stored)))
    # Besides its own exceptions, OmegaConf raises these for unexpected shapes and types.
    except (OmegaConfBaseException, AttributeError, TypeError, RecursionError) as error:
        raise RequestError(f"config: {rule} ({str(error).splitlines()[0][:200]})") from error
