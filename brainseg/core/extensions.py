"""Lookup of classes and functions by name, in MONAI and in installed packages.

Installed packages register names in the entry-point groups `brainseg.models`, `.losses`,
`.optimizers` and `.readers`. A config holds names, never import paths, so a config cannot make
the runner import anything.
"""

import difflib
import inspect
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from brainseg.core.errors import RequestError, check

# These classes of MONAI download weights, and torch.hub code with them, without being asked.
# In the other classes the `pretrained...` options switch the download on, and they are refused.
DOWNLOADING_CLASSES = (
    "PerceptualLoss",
    "TorchVisionFCModel",
    "Transchex",
    "MultiModal",
    "BertPreTrainedModel",
)


def load_extension(group: str, name: str) -> Any:
    """Return the object that an installed package registered under this name.

    Only the module of this object is imported. Returns None if no package registered the name.
    Raises RequestError if the import fails.
    """
    matches = [point for point in entry_points(group=group) if point.name == name]
    if not matches:
        return None
    try:
        return matches[0].load()
    # The module belongs to another package, so its code and its imports may raise any exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RequestError(
            f"{group}: {name} = {matches[0].value} cannot be imported ({reason}); "
            "repair or uninstall that package"
        ) from error


def registered_names(group: str) -> list[str]:
    """Return the sorted names that installed packages registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})


def call_with_options(builder: Any, family: str, config: Any, arguments: dict[str, Any]) -> Any:
    """Call a class or function with the options of a config and return the result.

    Args:
        builder: The class or function that `config.name` stands for.
        family: The config group, such as "optimizer". Error messages name it.
        config: The settings of the group, with `name` and `options`.
        arguments: Further arguments. Those that `builder` does not accept are left out.

    Raises RequestError for an option that `builder` does not accept, or if the call fails.
    """
    parameters = inspect.signature(builder).parameters
    accepted = {key: value for key, value in arguments.items() if key in parameters}
    options = {**accepted, **config.options}
    accepts_any = any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    for key, value in config.options.items():
        names = ", ".join(name for name in parameters if name not in arguments)
        check(
            accepts_any or key in parameters,
            f"{family}.options.{key}",
            value,
            f"{config.name} takes no such option",
            f"known: {names}{_without_options(family, config.name)}",
        )
        pretrained = str(key).startswith(("pretrained", "encoder_weights"))
        check(
            key not in arguments and not pretrained,
            f"{family}.options.{key}",
            value,
            "cannot be set here",
            "no weights are downloaded; initial=FILE begins with those of a file"
            if pretrained
            else "the data or another setting determines it",
        )
    if "weight_decay" in arguments and "weight_decay" not in parameters:
        raise RequestError(
            f"optimizer.weight_decay={arguments['weight_decay']}: {config.name} takes none; "
            "write optimizer.weight_decay=null"
        )
    try:
        return builder(**options)
    # Options are passed on unchecked, and torch and MONAI raise all kinds of exceptions for
    # values that they do not accept.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise RequestError(f"{family}={config.name}: {reason}; see {family}.options") from error


def _without_options(family: str, name: str) -> str:
    """Return a hint, after a semicolon, how to choose the class without the composed options.

    Only losses and optimizers have choices whose files set options. Others give an empty string.
    """
    choice = {"loss": "monai", "optimizer": "custom"}.get(family)
    return (
        f"; if the option belongs to another choice, write {family}={choice} {family}.name={name}"
        if choice
        else ""
    )


def monai_class(module: str, name: str, kind: type) -> Any:
    """Return the class that MONAI's module defines under this name, or None."""
    if not name.isidentifier() or not name[0].isupper():
        return None
    return _monai_classes(module, kind).get(name)


def _monai_classes(module: str, kind: type) -> dict[str, Any]:
    """Return the subclasses of `kind` that MONAI's module itself defines, by name.

    The module's imports from other libraries are not offered.
    """
    # The import takes seconds, so it waits until such a name is requested.
    import monai.losses
    import monai.networks.nets

    members = vars(
        {"monai.losses": monai.losses, "monai.networks.nets": monai.networks.nets}[module]
    )
    subclasses = (
        (name, member)
        for name, member in members.items()
        if inspect.isclass(member) and issubclass(member, kind)
    )
    return {
        name: subclass
        for name, subclass in subclasses
        if subclass.__module__.startswith(module) and name not in DOWNLOADING_CLASSES
    }


def known_names(name: str, table: Iterable[str], module: str = "", kind: type = object) -> str:
    """Return a remedy for an unknown name: the most similar known name, and the known names.

    The names of `table` are listed. MONAI's `module` has too many classes and is only named.
    """
    listed = sorted(table)
    close = difflib.get_close_matches(name, listed, n=1)
    if module and not close:
        monai_names = _monai_classes(module, kind)
        close = [
            candidate for candidate in monai_names if candidate.lower() == name.lower()
        ] or difflib.get_close_matches(name, monai_names, n=1, cutoff=0.8)
    more = f" or a class of {module}" if module else ""
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(listed)}{more}"
