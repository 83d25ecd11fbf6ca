"""What installed packages add by name: the entry-point groups `brainseg.models`, `.losses`, `.optimizers` and `.readers`."""

from importlib.metadata import entry_points
from typing import Any

from brainseg.core.errors import RequestError


def extension(group: str, name: str) -> Any:
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


def registered(group: str) -> list[str]:
    """The names registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})
