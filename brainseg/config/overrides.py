"""Overrides as typed: model.depth=4, +loss.options.lambda=1, ~augment. Their values are left as text; Hydra parses them."""

from collections.abc import Collection, Iterable


def setting_of(override: str) -> str:
    """The dotted name in an override, as model.depth in +model.depth=4."""
    return override.split("=", 1)[0].lstrip("+~")


def value_of(override: str) -> str:
    """What stands behind the first `=`; "" where there is none."""
    return override.partition("=")[2]


def values_by_setting(overrides: Iterable[str]) -> dict[str, str]:
    """The value of each setting. Of one given twice, as `from=RUN epochs=9` does, the last counts."""
    return {setting_of(one): value_of(one) for one in overrides}


def without_settings(overrides: Iterable[str], names: Iterable[str]) -> list[str]:
    """The overrides of other settings than these."""
    return [one for one in overrides if setting_of(one) not in names]


def short_name(name: str, among: Collection[str]) -> str:
    """model.depth as depth, model.name as model; the whole name where two of `among` would be the same."""

    def last(one: str) -> str:
        return one.removesuffix(".name").rsplit(".", 1)[-1]

    return name if sum(last(one) == last(name) for one in among) > 1 else last(name)
