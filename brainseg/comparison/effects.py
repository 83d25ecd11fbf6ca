"""Effect of each setting of a sweep over several settings, averaged over the other settings.

In a sweep of all combinations every run tells something about every setting. The difference between
two values of a setting is then the mean over many pairs of runs, and less uncertain than the
difference of any one pair (factorial experiments; Fisher 1935, The Design of Experiments).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.comparison.compare import Comparison, Configuration
from brainseg.comparison.names import independent_settings
from brainseg.evaluation.statistics import adjust_p_values, compare_paired

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("setting", "value", "instead_of", "pairs", "difference", "low", "high"),
    *("p", "p_holm", "wins", "ties", "losses"),
)


def setting_effects(comparison: Comparison) -> "pd.DataFrame":
    """Return a row for each value of each varying setting but the first value, with `COLUMNS`.

    `difference` is the mean Dice with `value` minus that with `instead_of`, the first value. Each
    patient's Dice is first averaged over the `pairs` of configurations that differ in this setting
    alone. Values without such a pair have no row. Interval and test are those of
    `statistics.compare_paired`, and Holm's correction is over all rows. The table is empty unless
    several settings vary and there are two patients.
    """
    import pandas as pd

    settings = independent_settings([each.runs[0] for each in comparison.configurations])
    rows: list[dict[str, Any]] = []
    for name in settings if len(settings) > 1 and comparison.patients > 1 else ():
        groups = group_by_value(comparison, name, settings)
        first, *later_values = groups
        for value in later_values:
            common = sorted(set(groups[first]) & set(groups[value]))
            if not common:
                continue
            ours, base = (
                np.mean([groups[key][remaining].dice for remaining in common], axis=0)
                for key in (value, first)
            )
            paired = asdict(compare_paired(ours, base, comparison.baseline.subjects))
            labels = {"setting": name, "value": value, "instead_of": first, "pairs": len(common)}
            rows.append(labels | paired | {"difference": paired["mean"]})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(p_holm=adjust_p_values(table.p))


def group_by_value(
    comparison: Comparison, name: str, settings: Sequence[str]
) -> dict[str, dict[tuple[str, ...], Configuration]]:
    """Return the configurations by value of the setting `name`, numbers in ascending order.

    Those with the same value are listed by the values of the remaining `settings`.
    """
    groups: dict[str, dict[tuple[str, ...], Configuration]] = {}
    for configuration in sorted(
        comparison.configurations,
        key=lambda configuration: _sort_key(configuration.runs[0].settings.get(name)),
    ):
        values = configuration.runs[0].settings
        remaining = tuple(str(values.get(setting)) for setting in settings if setting != name)
        groups.setdefault(str(values.get(name)), {})[remaining] = configuration
    return groups


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Return a key that sorts numbers by size and puts any other value before them."""
    return (
        (True, value, "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (False, 0.0, str(value))
    )
