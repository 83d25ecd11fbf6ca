"""The figure of the failure analysis.

It contains Dice against tumour volume, and a line with mean and interval for every patient group.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.core.files import writing
from brainseg.data.volume import patient_of
from brainseg.evaluation.metrics import count_missed
from brainseg.reports import failures, figures
from brainseg.reports.failures import ALL, COMPLETE, FALSE_POSITIVES, SEQUENCES, VOLUME
from brainseg.reports.figures import BLUE, GREY, ORANGE
from brainseg.reports.tables import format_patients

if TYPE_CHECKING:
    import pandas as pd

    from brainseg.data.store import Store

# The colours of patients with a missing sequence, in the order of the groups.
MISSING_SEQUENCE_COLOURS = (ORANGE, "#2e8b57", "#8e44ad")
# The height of a line in inches.
LINE_HEIGHT = 0.21
# The columns of the clinical part.
COLUMNS = 3
# The number of patients of lowest Dice whose names are drawn.
NAMED_PATIENTS = 3


def write_failures(
    folder: str | Path,
    patients: "pd.DataFrame",
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> list[Path]:
    """Write failures.csv, worst.csv and pictures/failures.png to `folder` and return their paths.

    Arguments are those of `failures.observe`.
    """
    tables = {
        "failures.csv": failures.summarise_groups(patients, slices, store, clinical),
        "worst.csv": failures.worst_patients(patients, store=store),
    }
    for name, table in tables.items():
        with writing(Path(folder) / name) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    picture = Path(folder) / "pictures" / "failures.png"
    draw_failures(patients, picture, slices, store, clinical)
    return [*(Path(folder) / name for name in tables), picture]


def draw_failures(
    patients: "pd.DataFrame",
    path: str | Path,
    slices: "pd.DataFrame | None" = None,
    store: "Store | None" = None,
    clinical: "pd.DataFrame | None" = None,
) -> None:
    """Draw the analysis as PNG. Arguments and errors are those of `failures.observe`."""
    observed = failures.collect_group_values(patients, slices, store, clinical)
    table = failures.summarise_groups(patients, slices, store, clinical)
    colours = _sequence_colours(table)
    columns = (
        [] if clinical is None else _split_into_columns(table[table.factor.isin(clinical.columns)])
    )
    main = table[~table.factor.isin([ALL, *(clinical.columns if clinical is not None else ())])]
    heights = [max(4.6, LINE_HEIGHT * _count_lines(main) + 0.9)]
    if columns:
        heights.append(LINE_HEIGHT * max(map(_count_lines, columns)) + 0.8)
    canvas = figures.new_figure(13, sum(heights) + 0.4)
    overall = table[table.factor == ALL].iloc[0]
    interval = f" [{overall.low:.3f}, {overall.high:.3f}]" if overall.patients > 1 else ""
    canvas.suptitle(
        f"{format_patients(overall.volumes, overall.patients)}: "
        f"mean Dice {overall['mean']:.3f}{interval}, {overall.missed} missed",
        x=0.01,
        horizontalalignment="left",
        fontsize=13,
    )
    parts = canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    scatter_axes, forest_axes = parts[0].subplots(1, 2)
    _draw_scatter(scatter_axes, patients, table, observed, store, colours)
    _draw_forest(forest_axes, main, observed, colours, _count_lines(main))
    forest_axes.set_title(
        "By group: each patient, mean and 95 % interval", loc="left", fontweight="bold", pad=24
    )
    for number, axes in enumerate(parts[1].subplots(1, COLUMNS) if columns else ()):
        if number < len(columns):
            # All columns get the same limits, so that their lines have the same height.
            lines = max(map(_count_lines, columns))
            _draw_forest(axes, columns[number], observed, colours, lines)
            axes.set_title(
                "" if number else "By clinical column, in the codes of the table",
                loc="left",
                fontweight="bold",
            )
        else:
            axes.remove()
    figures.save_figure(canvas, path)


def _sequence_colours(table: "pd.DataFrame") -> dict[str, str]:
    """Return the colour of each group of SEQUENCES, which both parts of the picture share."""
    absent = [group for group in table.group[table.factor == SEQUENCES] if group != COMPLETE]
    return {COMPLETE: BLUE} | {
        group: MISSING_SEQUENCE_COLOURS[number % len(MISSING_SEQUENCE_COLOURS)]
        for number, group in enumerate(absent)
    }


def _draw_scatter(
    axes: Any,
    patients: "pd.DataFrame",
    table: "pd.DataFrame",
    observed: "pd.DataFrame",
    store: "Store | None",
    colours: dict[str, str],
) -> None:
    """Draw Dice against tumour volume, with a dot per patient.

    The mean of each third of the volumes is a line, and its interval a band.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    # A logarithmic axis can't show a volume of 0.
    with_tumour = patients[patients.tumour_pixels > 0]
    groups = (
        with_tumour.patient.map(failures.missing_sequences(store))
        if store is not None
        else with_tumour.patient.map(lambda _: COMPLETE)
    )
    for group, colour in colours.items():
        x, y = (with_tumour.loc[groups == group, column] for column in ("tumour_pixels", "dice"))
        label = None if store is None else "all sequences" if group == COMPLETE else group
        dots = {"s": 34, "color": colour, "edgecolor": "white", "linewidth": 0.7}
        axes.scatter(x, y, **dots, zorder=3, clip_on=False, label=label)
    missed = with_tumour[count_missed(with_tumour)]
    if len(missed):
        crosses = {"s": 90, "marker": "x", "color": "black", "label": "missed"}
        axes.scatter(missed.tumour_pixels, missed.dice, **crosses, zorder=4, clip_on=False)
    _draw_thirds(axes, with_tumour, table, observed)
    _name_worst_patients(axes, with_tumour)
    _style_axes(axes)
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
    if store is not None or len(missed):
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.025, 0.99),
            ncols=4,
            frameon=False,
            handletextpad=0.1,
            fontsize=9,
        )
        # The legend may be wider than the axes.
        legend.set_in_layout(False)


def _draw_thirds(
    axes: Any, with_tumour: "pd.DataFrame", table: "pd.DataFrame", observed: "pd.DataFrame"
) -> None:
    """Draw the mean Dice of each third of the volumes as a line, with its interval as a band."""
    volume_rows = observed[observed.factor == VOLUME].merge(
        with_tumour[["patient", "tumour_pixels"]], on="patient"
    )
    ends = volume_rows.groupby("group").tumour_pixels.agg(["min", "max"])
    for row in table[(table.factor == VOLUME) & table.group.isin(ends.index)].itertuples():
        span = ends.loc[row.group]
        axes.plot(span, [row.mean, row.mean], color=GREY, linewidth=2, zorder=2)
        axes.fill_between(span, row.low, row.high, color=GREY, alpha=0.15, linewidth=0, zorder=1)


def _name_worst_patients(axes: Any, with_tumour: "pd.DataFrame") -> None:
    """Write the names of the patients with the lowest Dice beside their dots."""
    worst = with_tumour.sort_values(["dice", "patient"]).head(NAMED_PATIENTS)
    # The geometric mean is the middle of a logarithmic axis.
    volumes = with_tumour.tumour_pixels
    middle = math.sqrt(volumes.min() * volumes.max()) if len(volumes) else 0
    for rank, row in enumerate(worst.itertuples()):
        # A name is written towards the middle, where it fits into the axes. Names at about the
        # same height, such as those of missed patients, are written above each other.
        level = int((abs(worst.dice.iloc[:rank] - row.dice) < 0.05).sum())
        is_left = row.tumour_pixels < middle
        axes.annotate(
            patient_of(row.patient),
            (row.tumour_pixels, row.dice),
            (9 if is_left else -9, 11 * level),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
            horizontalalignment="left" if is_left else "right",
            verticalalignment="center",
            parse_math=False,
        )


def _draw_forest(
    axes: Any, table: "pd.DataFrame", observed: "pd.DataFrame", colours: dict[str, str], lines: int
) -> None:
    """Draw a line per group below the line of its factor.

    A line has a dot per patient, the mean with its interval, and the numbers at the right end. The
    axes have room for `lines` lines.
    """
    from matplotlib.transforms import blended_transform_factory

    # Text is placed by the width of the axes and by the line.
    text_transform = blended_transform_factory(axes.transAxes, axes.transData)
    line, ticks = 0, {}
    for factor, part in table.groupby("factor", sort=False):
        title = (
            "false positives: share of tumour-free slices (low is good)"
            if factor == FALSE_POSITIVES
            else str(factor).replace("_", " ")
        )
        axes.text(
            0.0,
            line,
            title,
            transform=text_transform,
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
                if factor == FALSE_POSITIVES
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
            missed = f", {row.missed} missed" if factor != FALSE_POSITIVES and row.missed else ""
            axes.text(
                1.02,
                line,
                f"{row.mean:.2f}   n = {row.patients}{missed}",
                transform=text_transform,
                fontsize=8,
                verticalalignment="center",
            )
        line += 1
    _style_axes(axes)
    axes.set_yticks(
        list(ticks), list(ticks.values()), fontsize=8, verticalalignment="center", parse_math=False
    )
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(lines - 0.3, -0.7), xlabel="Dice")
    axes.grid(axis="x", color="#e5e5e5")


def _style_axes(axes: Any) -> None:
    """Hide the upper and right border, and draw the grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _count_lines(table: "pd.DataFrame") -> int:
    """Return the number of lines of a table of groups, which is one per group and factor."""
    return len(table) + table.factor.nunique()


def _split_into_columns(table: "pd.DataFrame") -> "list[pd.DataFrame]":
    """Return the factors with at least two groups, in order, in columns of about equal length."""
    import pandas as pd

    shown_factors = table[table.groupby("factor").group.transform("size") > 1]
    columns: list[list[pd.DataFrame]] = [[] for _ in range(COLUMNS)]
    total = _count_lines(shown_factors)
    first_line = 0
    for _, factor_rows in shown_factors.groupby("factor", sort=False):
        # A factor goes to the column that contains its middle line.
        middle = first_line + _count_lines(factor_rows) / 2
        columns[int(COLUMNS * middle / total)].append(factor_rows)
        first_line += _count_lines(factor_rows)
    return [pd.concat(column) for column in columns if column]
