"""Short and distinct names for the configurations of a comparison, as a user would type them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brainseg.comparison.runs import ScoredRun
from brainseg.config.overrides import setting_of, short_name
from brainseg.runs.identity import REPETITION_SETTINGS, drop_non_identity

if TYPE_CHECKING:
    import pandas as pd

# If only these choices were typed, they are the name. A choice stands for several settings.
CHOICES_AS_NAMES = ("experiment=", "device=")
# Characters. A longer name pushes the scores off the screen.
MAX_NAME_LENGTH = 60


def configuration_names(runs: Sequence[ScoredRun]) -> dict[str, str]:
    """Return a name for each configuration of `runs`, by `ScoredRun.configuration`.

    The name lists the settings in which the configurations differ, such as `depth=3 width=16`.
    A single configuration is named after its run. Where these names are too long or not distinct,
    the typed overrides that not all configurations share are used, and failing that the names of
    the run folders. If only experiments or devices were typed, the name is that choice, such as
    `experiment=fast`.
    """
    first_runs = {run.configuration: run for run in reversed(runs)}
    settings = {key: run.settings for key, run in first_runs.items()}
    varying = independent_settings(list(first_runs.values()))
    if not varying:
        return {key: run.facts["name"].rsplit("-", 1)[0] for key, run in first_runs.items()}
    short_names = {name: short_name(name, varying) for name in varying}
    by_settings = {
        key: " ".join(f"{short_names[name]}={values[name]}" for name in varying if name in values)
        for key, values in settings.items()
    }
    by_overrides = _names_by_overrides(first_runs)
    only_choices = all(
        name.startswith(CHOICES_AS_NAMES) and " " not in name for name in by_overrides.values()
    )
    # Names by settings would not tell that the configurations are experiments or devices.
    preferred = (by_overrides, by_settings) if only_choices else (by_settings, by_overrides)
    for names in (*preferred, {key: run.path.name for key, run in first_runs.items()}):
        if (
            len(set(names.values())) == len(names)
            and max(map(len, names.values())) <= MAX_NAME_LENGTH
        ):
            return names
    return by_settings


def varying_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that have several values, except seed and fold.

    A configuration without a setting counts as one with another value. Those that are pooled over
    devices have no device settings, and do not count among these.
    """
    names = {name for values in settings for name in values} - set(REPETITION_SETTINGS)

    def count_values(name: str) -> int:
        present = [values for values in settings if name in values]
        counted = present if name.startswith("device.") else settings
        return len({str(values.get(name)) for values in counted})

    return sorted(name for name in names if count_values(name) > 1)


def independent_settings(runs: Sequence[ScoredRun]) -> list[str]:
    """Return the varying settings, without those that follow from a choice and were not typed."""
    settings = [run.settings for run in runs]
    typed = {setting_of(word) for run in runs for word in run.facts["overrides"]}
    varying = varying_settings(settings)
    return [
        name
        for name in varying
        if name in typed or not _follows_from_choice(name, varying, settings)
    ]


def _follows_from_choice(
    name: str, varying: Sequence[str], settings: Sequence[Mapping[str, Any]]
) -> bool:
    """Return True if a setting differs only because another choice of its group has other defaults.

    loss.options.smooth, for example, has the same value wherever loss.name has the same value.
    """
    choice = f"{name.partition('.')[0]}.name"
    if name == choice or choice not in varying:
        return False
    pairs = {(str(values.get(choice)), str(values.get(name))) for values in settings}
    return len(pairs) == len({chosen for chosen, _ in pairs})


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> "pd.DataFrame":
    """Return a table with a row for each varying setting and a column for each label."""
    import pandas as pd

    names = varying_settings(list(settings.values()))
    columns = {
        label: [str(values.get(name, "")) for name in names] for label, values in settings.items()
    }
    return pd.DataFrame({"setting": names} | columns)


def _names_by_overrides(first_runs: Mapping[str, ScoredRun]) -> dict[str, str]:
    """Return the typed overrides of each configuration that not all configurations share.

    Overrides that distinguish no configurations are dropped. An experiment is always part of the
    name.
    """

    def distinguishes(override: str, run: ScoredRun) -> bool:
        # The group of a sweep only lists values, which the job's own overrides repeat.
        ignored = ("sweep", *REPETITION_SETTINGS, *run.ignored)
        return bool(drop_non_identity({setting_of(override): ""}, ignored))

    def is_shared(override: str) -> bool:
        return setting_of(override) != "experiment" and all(
            override in words for words in overrides.values()
        )

    overrides = {
        key: [override for override in run.facts["overrides"] if distinguishes(override, run)]
        for key, run in first_runs.items()
    }
    return {
        key: " ".join(word for word in words if not is_shared(word)) or "defaults"
        for key, words in overrides.items()
    }
