"""The failure analysis as one picture: Dice against tumour volume, then every group as a line with its mean and interval."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.core.files import writing
from brainseg.data.volume import patient_of
from brainseg.evaluation.metrics import count_missed
from brainseg.reports import failures, figures
from brainseg.reports.failures import ALL, COMPLETE, FALSE_ALARMS, SEQUENCES, VOLUME
from brainseg.reports.figures import BLUE, GREY, ORANGE
from brainseg.reports.tables import format_count

if TYPE_CHECKING:
    import pandas as pd

    from brainseg.data.store import Store

FURTHER = (
    ORANGE,
    "#2e8b57",
    "#8e44ad",
)  # of patients without a sequence, in the order of the groups
LINE = 0.21  # inches of one line
COLUMNS = 3  # of the clinical part
NAMED = 3  # the worst patients, by name in the picture


def write(
    folder: str | Path,
    patients: "pd.DataFrame",
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> list[Path]:
    """Write failures.csv, worst.csv and pictures/failures.png to `folder`; returns their paths. Arguments as `failures.observe`."""
    tables = {
        "failures.csv": failures.groups(patients, slices, store, clinical),
        "worst.csv": failures.worst(patients, store=store),
    }
    for name, table in tables.items():
        with writing(Path(folder) / name) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    picture = Path(folder) / "pictures" / "failures.png"
    figure(patients, picture, slices, store, clinical)
    return [*(Path(folder) / name for name in tables), picture]


def figure(
    patients: "pd.DataFrame",
    path: str | Path,
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> None:
    """Draw the analysis as PNG. Arguments and errors as `failures.observe`."""
    observed, table = (
        failures.observe(patients, slices, store, clinical),
        failures.groups(patients, slices, store, clinical),
    )
    colours = _colours(table)
    columns = [] if clinical is None else _dealt(table[table.factor.isin(clinical.columns)])
    main = table[~table.factor.isin([ALL, *(clinical.columns if clinical is not None else ())])]
    heights = [max(4.6, LINE * _lines(main) + 0.9)] + [
        LINE * max(map(_lines, columns)) + 0.8 for _ in columns[:1]
    ]
    drawn = figures.new_figure(13, sum(heights) + 0.4)
    overall = table[table.factor == ALL].iloc[0]
    interval = f" [{overall.low:.3f}, {overall.high:.3f}]" if overall.patients > 1 else ""
    drawn.suptitle(
        f"{format_count(overall.patients, 'patient')}: mean Dice {overall['mean']:.3f}{interval}, {overall.missed} missed",
        x=0.01,
        horizontalalignment="left",
        fontsize=13,
    )
    parts = drawn.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    left, right = parts[0].subplots(1, 2)
    _scatter(left, patients, table, observed, store, colours)
    _forest(right, main, observed, colours, _lines(main))
    right.set_title(
        "By group: each patient, mean and 95 % interval", loc="left", fontweight="bold", pad=24
    )
    for number, axes in enumerate(parts[1].subplots(1, COLUMNS) if columns else ()):
        if number < len(columns):
            _forest(axes, columns[number], observed, colours, max(map(_lines, columns)))
            axes.set_title(
                "" if number else "By clinical column, in its own codes",
                loc="left",
                fontweight="bold",
            )
        else:
            axes.remove()
    figures.save_figure(drawn, path)


def _colours(table: "pd.DataFrame") -> dict[str, str]:
    """One colour for each group of SEQUENCES: the same in both parts of the picture."""
    absent = [group for group in table.group[table.factor == SEQUENCES] if group != COMPLETE]
    return {COMPLETE: BLUE} | {
        group: FURTHER[number % len(FURTHER)] for number, group in enumerate(absent)
    }


def _scatter(
    axes: Any,
    patients: "pd.DataFrame",
    table: "pd.DataFrame",
    observed: "pd.DataFrame",
    store: "Store | None",
    colours: dict[str, str],
) -> None:
    """Dice against tumour volume, a dot a patient; the mean of each third as a line with its interval as a band."""
    from matplotlib.ticker import LogLocator, NullLocator

    shown = patients[patients.tumour_pixels > 0]
    absent = (
        shown.patient.map(failures.sequences(store))
        if store is not None
        else shown.patient.map(lambda _: COMPLETE)
    )
    for group, colour in colours.items():
        x, y = (shown.loc[absent == group, column] for column in ("tumour_pixels", "dice"))
        label = None if store is None else "all sequences" if group == COMPLETE else group
        axes.scatter(
            x,
            y,
            s=34,
            color=colour,
            edgecolor="white",
            linewidth=0.7,
            zorder=3,
            clip_on=False,
            label=label,
        )
    overlooked = shown[count_missed(shown)]
    if len(overlooked):
        axes.scatter(
            overlooked.tumour_pixels,
            overlooked.dice,
            s=90,
            marker="x",
            color="black",
            zorder=4,
            clip_on=False,
            label="missed",
        )
    members = observed[observed.factor == VOLUME].merge(
        shown[["patient", "tumour_pixels"]], on="patient"
    )
    ends = members.groupby("group").tumour_pixels.agg(["min", "max"])
    for row in table[(table.factor == VOLUME) & table.group.isin(ends.index)].itertuples():
        axes.plot(ends.loc[row.group], [row.mean, row.mean], color=GREY, linewidth=2, zorder=2)
        axes.fill_between(
            ends.loc[row.group], row.low, row.high, color=GREY, alpha=0.15, linewidth=0, zorder=1
        )
    named = shown.sort_values(["dice", "patient"]).head(NAMED)
    middle = (
        math.sqrt(shown.tumour_pixels.min() * shown.tumour_pixels.max()) if len(shown) else 0
    )  # of a logarithmic axis
    for place, row in enumerate(
        named.itertuples()
    ):  # towards the middle; one above the other where they share a height, as missed ones
        level, left = (
            int((abs(named.dice.iloc[:place] - row.dice) < 0.05).sum()),
            row.tumour_pixels < middle,
        )
        axes.annotate(
            patient_of(row.patient),
            (row.tumour_pixels, row.dice),
            (9 if left else -9, 11 * level),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
            horizontalalignment="left" if left else "right",
            verticalalignment="center",
            parse_math=False,
        )
    _tidy(axes)
    axes.set_title("Dice against tumour volume", loc="left", fontweight="bold", pad=24)
    axes.set(
        xscale="log",
        xlabel="tumour volume (voxels); grey: mean and 95 % interval of each third",
        ylabel="Dice",
        ylim=(-0.02, 1.02),
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="#e5e5e5")
    if store is not None or len(overlooked):
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.025, 0.99),
            ncols=4,
            frameon=False,
            handletextpad=0.1,
            fontsize=9,
        )
        legend.set_in_layout(False)  # it may be wider than the axes


def _forest(
    axes: Any, table: "pd.DataFrame", observed: "pd.DataFrame", colours: dict[str, str], lines: int
) -> None:
    """A line a group below its factor's, at most `lines`: patients as dots, mean and interval, and the numbers at the right end."""
    from matplotlib.transforms import blended_transform_factory

    beside = blended_transform_factory(axes.transAxes, axes.transData)
    line, ticks = 0, {}
    for factor, part in table.groupby("factor", sort=False):
        title = (
            "false alarms: share of tumour-free slices (low is good)"
            if factor == FALSE_ALARMS
            else str(factor).replace("_", " ")
        )
        axes.text(
            0.0,
            line,
            title,
            transform=beside,
            fontweight="bold",
            fontsize=9,
            verticalalignment="center",
            parse_math=False,
        )
        for row in part.itertuples():
            line += 1
            ticks[line] = row.group
            colour = (
                colours.get(row.group, BLUE)
                if factor == SEQUENCES
                else GREY
                if factor == FALSE_ALARMS
                else BLUE
            )
            values = observed.value[(observed.factor == factor) & (observed.group == row.group)]
            axes.scatter(values, [line] * len(values), s=9, color=colour, alpha=0.3, linewidth=0)
            axes.plot(
                [row.low, row.high],
                [line, line],
                color=colour,
                linewidth=2.4,
                solid_capstyle="butt",
            )
            axes.plot(
                [row.mean],
                [line],
                marker="D",
                markersize=5,
                color=colour,
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
            missed = f", {row.missed} missed" if factor != FALSE_ALARMS and row.missed else ""
            axes.text(
                1.02,
                line,
                f"{row.mean:.2f}   n = {row.patients}{missed}",
                transform=beside,
                fontsize=8,
                verticalalignment="center",
            )
        line += 1
    _tidy(axes)
    axes.set_yticks(
        list(ticks), list(ticks.values()), fontsize=8, verticalalignment="center", parse_math=False
    )
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(lines - 0.3, -0.7), xlabel="Dice")
    axes.grid(axis="x", color="#e5e5e5")


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _lines(table: "pd.DataFrame") -> int:
    return len(table) + table.factor.nunique()


def _dealt(table: "pd.DataFrame") -> "list[pd.DataFrame]":
    """The factors with more than one group, in order, in columns of about equal length."""
    import pandas as pd

    several = table[table.groupby("factor").group.transform("size") > 1]
    dealt: list[list[pd.DataFrame]] = [[] for _ in range(COLUMNS)]
    before = 0
    for _, part in several.groupby("factor", sort=False):
        middle = before + _lines(part) / 2
        dealt[int(COLUMNS * middle / _lines(several))].append(part)
        before += _lines(part)
    return [pd.concat(column) for column in dealt if column]
