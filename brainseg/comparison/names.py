"""What the configurations of a comparison are called: short enough for a table, distinct, as one would type them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brainseg.comparison.runs import REPEATED, ScoredRun
from brainseg.config.overrides import setting_of, short_name
from brainseg.runs.identity import drop_non_identity

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 60  # characters: a longer name pushes the figures off the screen


def configuration_names(runs: Sequence[ScoredRun]) -> dict[str, str]:
    """A name for each configuration: the settings in which they differ, as depth=3 width=16; the run's name where nothing does.

    Where those are too many: what was typed for one and not for all; failing that, the run's folder. Where only experiments were
    typed: these, as experiment=fast.
    """
    first = {run.configuration: run for run in reversed(runs)}
    settings = {key: run.settings for key, run in first.items()}
    differ = varying_settings(list(settings.values()))
    if not differ:
        return {key: run.facts["name"].rsplit("-", 1)[0] for key, run in first.items()}
    shown = {name: short_name(name, differ) for name in differ}
    by_settings = {
        key: " ".join(f"{shown[name]}={one[name]}" for name in differ if name in one)
        for key, one in settings.items()
    }
    typed = _typed(first)
    only_experiments = all(
        words.startswith("experiment=") and " " not in words for words in typed.values()
    )
    preferred = (typed, by_settings) if only_experiments else (by_settings, typed)
    for names in (*preferred, {key: run.path.name for key, run in first.items()}):
        if len(set(names.values())) == len(names) and max(map(len, names.values())) <= LONGEST:
            return names
    return by_settings


def varying_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that have several values, seed and fold aside."""
    names = {name for one in settings for name in one} - set(REPEATED)
    return sorted(name for name in names if len({str(one.get(name)) for one in settings}) > 1)


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> "pd.DataFrame":
    """The settings by label, as a table: a row for each setting in which they differ, a column for each label."""
    import pandas as pd

    names = varying_settings(list(settings.values()))
    return pd.DataFrame(
        {"setting": names}
        | {label: [str(one.get(name, "")) for name in names] for label, one in settings.items()}
    )


def _typed(first: Mapping[str, ScoredRun]) -> dict[str, str]:
    """The words of each configuration's command that make its numbers, less those that all have; their experiment is always said."""

    def counts(word: str) -> bool:
        return bool(drop_non_identity({setting_of(word): ""}, REPEATED))

    def shared(word: str) -> bool:
        return setting_of(word) != "experiment" and all(word in own for own in words.values())

    words = {
        key: [word for word in run.facts["overrides"] if counts(word)] for key, run in first.items()
    }
    return {
        key: " ".join(word for word in own if not shared(word)) or "defaults"
        for key, own in words.items()
    }
