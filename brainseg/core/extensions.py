"""Objects by name: from MONAI, and from installed packages.

Installed packages register names in the entry-point groups `brainseg.models`, `.losses`, `.optimizers` and `.readers`. A config
holds names, never import paths, so a config cannot make the runner import anything.
"""

import difflib
import inspect
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from brainseg.core.errors import RequestError, check

# Classes of MONAI that fetch weights, and torch.hub code with them, by themselves; of the others `pretrained...` is switched off.
FETCHING = (
    "PerceptualLoss",
    "TorchVisionFCModel",
    "Transchex",
    "MultiModal",
    "BertPreTrainedModel",
)


def load_extension(group: str, name: str) -> Any:
    """What an installed package registered under this name, None if none did; only this one is imported. Raises RequestError."""
    found = [point for point in entry_points(group=group) if point.name == name]
    if not found:
        return None
    try:
        return found[0].load()
    except Exception as error:  # a stranger's module: whatever its code and its imports raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RequestError(
            f"{group}: {name} = {found[0].value} cannot be imported ({reason}); mend or uninstall that package"
        ) from error


def registered_names(group: str) -> list[str]:
    """The names registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})


def call_with_options(found: Any, family: str, config: Any, given: dict[str, Any]) -> Any:
    """Call what a name stands for with the options it takes; the others are refused by name."""
    taken = inspect.signature(found).parameters
    options = {**{key: value for key, value in given.items() if key in taken}, **config.options}
    free = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    for key, value in config.options.items():
        check(
            free or key in taken,
            f"{family}.options.{key}",
            value,
            f"{config.name} takes no such option",
            f"known: {', '.join(name for name in taken if name not in given)}{_without_options(family, config.name)}",
        )
        check(
            key not in given and not str(key).startswith("pretrained"),
            f"{family}.options.{key}",
            value,
            "is no option",
            "no weights are fetched"
            if str(key).startswith("pretrained")
            else "the data or another setting says it",
        )
    if "weight_decay" in given and "weight_decay" not in taken:
        raise RequestError(
            f"optimizer.weight_decay={given['weight_decay']}: {config.name} takes none; set it to null"
        )
    try:
        return found(**options)
    except Exception as error:  # options are free, and there is nothing that torch and MONAI do not raise for those they cannot take
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise RequestError(f"{family}={config.name}: {reason}; see {family}.options") from error


def _without_options(family: str, name: str) -> str:
    """Return how to choose a loss or an optimizer without the options of the choice that was composed, after a semicolon."""
    choice = {"loss": "monai", "optimizer": "own"}.get(family)
    return (
        f"; if the option is that of another choice, write {family}={choice} {family}.name={name}"
        if choice
        else ""
    )


def monai_class(module: str, name: str, kind: type) -> Any:
    """Return the class that MONAI's module defines under this name, or None."""
    if not name.isidentifier() or not name[0].isupper():
        return None
    return _monai_classes(module, kind).get(name)


def _monai_classes(module: str, kind: type) -> dict[str, Any]:
    """Return the classes that MONAI's module itself defines, by name; its imports of other libraries are not offered."""
    # The import takes seconds, so it waits until such a name is asked for.
    import monai.losses
    import monai.networks.nets

    members = vars(
        {"monai.losses": monai.losses, "monai.networks.nets": monai.networks.nets}[module]
    )
    own = (
        found
        for found in members.items()
        if inspect.isclass(found[1]) and issubclass(found[1], kind)
    )
    return {
        name: found
        for name, found in own
        if found.__module__.startswith(module) and name not in FETCHING
    }


def known_names(name: str, table: Iterable[str], module: str = "", kind: type = object) -> str:
    """Return which known name was meant, if one is like it, and where the known names are listed."""
    listed = sorted(table)
    close = difflib.get_close_matches(name, listed, n=1)
    if module and not close:
        theirs = _monai_classes(module, kind)
        close = [
            other for other in theirs if other.lower() == name.lower()
        ] or difflib.get_close_matches(name, theirs, n=1, cutoff=0.8)
    more = f" or a class of {module}" if module else ""
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(listed)}{more}"
