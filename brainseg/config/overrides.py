"""Overrides as typed, such as model.depth=4, +loss.options.lambda=1 and ~augment.

The values stay text here. Hydra parses them.
"""

from collections.abc import Collection, Iterable

# Earlier names of settings, which are still accepted.
RENAMED = {"data.volume": "data.channel"}
# Earlier names of choices, likewise.
RENAMED_CHOICES = {f"{group}=own": f"{group}=custom" for group in ("model", "loss", "optimizer")}


def setting_of(override: str) -> str:
    """Return the dotted name in an override: model.depth for +model.depth=4."""
    return override.split("=", 1)[0].lstrip("+~")


def value_of(override: str) -> str:
    """Return the text after the first `=`, such as 4 of model.depth=4, or "" without a `=`."""
    return override.partition("=")[2]


def values_by_setting(overrides: Iterable[str]) -> dict[str, str]:
    """Return the text of the value of each setting by dotted name.

    If a setting is repeated, its last value counts. `from=RUN epochs=9`, for example, places the
    epochs after those of the run.
    """
    return {setting_of(override): value_of(override) for override in overrides}


def without_settings(overrides: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the overrides of all settings except `names`."""
    return [override for override in overrides if setting_of(override) not in names]


def short_name(name: str, among: Collection[str]) -> str:
    """Return a short name for a setting: depth for model.depth, model for model.name.

    The full name is returned if two settings of `among` would get the same short name.
    """

    def shorten(setting: str) -> str:
        return setting.removesuffix(".name").rsplit(".", 1)[-1]

    is_ambiguous = sum(shorten(setting) == shorten(name) for setting in among) > 1
    return name if is_ambiguous else shorten(name)


def rename_setting(override: str) -> str:
    """Return the override with the present names of its setting and choice."""
    override = RENAMED_CHOICES.get(override, override)
    setting = setting_of(override)
    return override.replace(setting, RENAMED[setting], 1) if setting in RENAMED else override
