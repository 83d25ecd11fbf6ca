"""Figures of a comparison.

Each figure is a function that takes a `Comparison` and returns a matplotlib figure, or None if the
comparison has nothing to draw.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brainseg.comparison.compare import Comparison
from brainseg.comparison.effects import group_by_value
from brainseg.comparison.names import independent_settings
from brainseg.reports.figures import BLUE, GREY, ORANGE, new_figure
from brainseg.reports.tables import format_interval, format_patients

LIGHT = "#b9c7d3"
# Configurations in a figure. The table and comparison.csv contain all of them.
MAX_CONFIGURATIONS = 24
# Settings whose effect is drawn side by side. With more of them, no mean would be over the same
# values of the other settings.
MAX_PANELS = 8


def ranking(comparison: Comparison) -> Any:
    """Draw mean Dice with its 95 % interval for each configuration, the best first.

    Each dot is a patient, or a volume of a patient with several. Missed ones are orange.
    """
    configurations = comparison.configurations[:MAX_CONFIGURATIONS]
    figure = new_figure(9, 1.6 + 0.52 * len(configurations))
    axes = figure.subplots()
    # Jitter separates patients of equal Dice. A fixed seed draws the same figure every time.
    generator = np.random.default_rng(0)
    for place, configuration in enumerate(configurations):
        row = comparison.table.iloc[place]
        dice = configuration.dice
        height = place + generator.uniform(-0.16, 0.16, len(dice))
        missed = configuration.patients.missed.to_numpy() > 0
        axes.scatter(dice, height, s=14, color=np.where(missed, ORANGE, LIGHT), linewidths=0)
        axes.plot(
            [row.dice_low, row.dice_high],
            [place, place],
            color=BLUE,
            linewidth=3,
            solid_capstyle="butt",
        )
        axes.plot([row.dice], [place], "o", color=BLUE, markersize=7)
        axes.text(
            1.02,
            place,
            f"{row.dice:.3f}  [{format_interval(row.dice_low, row.dice_high)}]",
            verticalalignment="center",
            fontsize=9,
            transform=axes.get_yaxis_transform(),
        )
    _label_rows(axes, [configuration.label for configuration in configurations])
    axes.set_xlim(-0.02, 1.0)
    selection = (
        ""
        if len(configurations) == len(comparison.configurations)
        else f" (the first {MAX_CONFIGURATIONS} of {len(comparison.configurations)})"
    )
    patients = format_patients(comparison.volumes, comparison.patients, comparison.role_name)
    _set_title(axes, f"Dice of {patients}, mean and 95 % interval{selection}")
    return figure


def differences(comparison: Comparison) -> Any:
    """Draw the mean paired difference of each configuration to the baseline, with its interval.

    Differences whose p-value after Holm's correction is below 0.05 are blue.
    """
    # The baseline itself has no p-value.
    rows = list(comparison.table[comparison.table.p.notna()].itertuples())[:MAX_CONFIGURATIONS]
    if not rows:
        return None
    figure = new_figure(9, 1.6 + 0.45 * len(rows))
    axes = figure.subplots()
    for height, row in enumerate(rows):
        colour = BLUE if row.p_holm < 0.05 else GREY
        axes.plot(
            [row.difference_low, row.difference_high],
            [height, height],
            color=colour,
            linewidth=2.5,
            solid_capstyle="butt",
        )
        axes.plot([row.difference], [height], "o", color=colour)
        text = f"{row.difference:+.3f}   {row.wins:.0f} won, {row.losses:.0f} lost"
        text += f"   p {row.p_holm:.2g}"
        axes.text(
            1.02,
            height,
            text,
            verticalalignment="center",
            fontsize=9,
            transform=axes.get_yaxis_transform(),
        )
    axes.axvline(0, color="black", linewidth=1)
    _label_rows(axes, [row.configuration for row in rows])
    # Long names leave the axis little room.
    axes.locator_params(axis="x", nbins=5)
    title = f"Difference in Dice to {comparison.baseline.label}\n"
    _set_figure_title(figure, title + "patient by patient; p by Wilcoxon and Holm")
    return figure


def curves(comparison: Comparison) -> Any:
    """Draw validation Dice of each configuration while training, averaged over its runs.

    Thin lines are single runs. The horizontal axis is in minutes if a run had a time budget, else
    in epochs. Returns None if no run was validated.
    """
    configurations = comparison.configurations[:10]
    histories = [run.history for configuration in configurations for run in configuration.runs]
    # Runs without validation patients have no curve.
    if not any("val/dice" in row["metrics"] for history in histories for row in history):
        return None
    by_time = any(
        run.config.max_minutes is not None
        for configuration in configurations
        for run in configuration.runs
    )
    figure = new_figure(9, 4.4)
    axes = figure.subplots()
    for index, configuration in enumerate(configurations):
        colour = f"C{index}"
        # An ensemble has no history.
        if not all(run.history for run in configuration.runs):
            continue
        lines = [_validation_curve(run.history, by_time) for run in configuration.runs]
        for place, value in lines if len(lines) > 1 else ():
            axes.plot(place, value, color=colour, linewidth=0.7, alpha=0.35)
        # The mean ends with the shortest run, because it would jump where a run drops out.
        length = min(len(value) for _, value in lines)
        mean = [
            np.mean([part[:length] for part in parts], axis=0) for parts in zip(*lines, strict=True)
        ]
        axes.plot(
            *mean,
            color=colour,
            linewidth=2,
            label=configuration.label,
            marker="o" if length < 15 else None,
            markersize=3,
        )
    axes.set_xlabel("minutes of training and validation" if by_time else "epoch")
    axes.xaxis.get_major_locator().set_params(integer=not by_time)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    shows_all = len(configurations) == len(comparison.configurations)
    _set_title(axes, "Validation Dice while training" + ("" if shows_all else ", the ten best"))
    return figure


def main_effects(comparison: Comparison) -> Any:
    """Draw mean Dice against each setting that has several values.

    Grey dots are configurations. Blue is the mean and standard deviation over the configurations
    whose other settings were run with each of the values. Without that restriction a value would
    be charged with the other changes made beside it, for example where one setting at a time was
    taken back.
    """
    settings = independent_settings([each.runs[0] for each in comparison.configurations])
    if len(comparison.configurations) < 3 or not 0 < len(settings) <= MAX_PANELS:
        return None
    # The additional 2.5 inches leave room for the title above a single panel.
    figure = new_figure(min(3.2 * len(settings) + 2.5, 16), 3.8)
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, settings, strict=True):
        groups = group_by_value(comparison, name, settings)
        common = set.intersection(*map(set, groups.values()))
        means = []
        for place, group in enumerate(groups.values()):
            dice = [float(configuration.dice.mean()) for configuration in group.values()]
            matched_dice = [float(group[remaining].dice.mean()) for remaining in common]
            # Shifted to the right, so that the dots do not lie under the error bar.
            axes.scatter(
                [place + 0.12] * len(dice), dice, s=22, color=GREY, alpha=0.6, linewidths=0
            )
            if matched_dice:
                means.append(np.mean(matched_dice))
                spread = np.std(matched_dice, ddof=1) if len(matched_dice) > 1 else 0
                axes.errorbar(
                    [place], [means[-1]], yerr=[spread], color=BLUE, marker="o", capsize=4
                )
        axes.plot(range(len(means)), means, color=BLUE, linewidth=1)
        axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(name.removesuffix(".name"), loc="left", fontsize=10)
    title = "Mean Dice by setting; grey: each configuration\n"
    title += "blue: mean and standard deviation over those whose\n"
    title += "other settings were run with each of the values"
    _set_figure_title(figure, title)
    return figure


def cost(comparison: Comparison) -> Any:
    """Draw Dice against the number of parameters and against the seconds of a run.

    The line is the Pareto front. It joins the configurations that no cheaper one beats.
    """
    table = comparison.table
    if len(table) < 3:
        return None
    figure = new_figure(11, 4.2)
    for axes, column in zip(
        figure.subplots(1, 2, sharey=True), ("parameters", "seconds"), strict=True
    ):
        front = pareto_front(table[column].to_numpy(), table.dice.to_numpy())
        axes.scatter(table[column], table.dice, color=LIGHT, s=28)
        axes.plot(
            table[column].iloc[front],
            table.dice.iloc[front],
            color=ORANGE,
            marker="o",
            linewidth=1.5,
        )
        for index in front:
            axes.annotate(
                table.configuration.iloc[index],
                (table[column].iloc[index], table.dice.iloc[index]),
                fontsize=8,
                xytext=(4, -10),
                textcoords="offset points",
            )
        if table[column].max() > 3 * table[column].min():
            axes.set_xscale("log")
        else:
            axes.ticklabel_format(axis="x", style="plain", useOffset=False)
            axes.locator_params(axis="x", nbins=3)
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel({"parameters": "parameters", "seconds": "seconds of a run"}[column])
        _set_title(axes, f"Dice against {column}")
    return figure


def patient_by_patient(comparison: Comparison) -> Any:
    """Draw the Dice of every patient.

    A single configuration is drawn as sorted bars. Of several configurations, the best is drawn
    against the baseline, or against the second best if the baseline is the best.
    """
    figure = new_figure(5, 4.6) if len(comparison.configurations) > 1 else new_figure(9, 3.6)
    axes = figure.subplots()
    best = comparison.configurations[0]
    if len(comparison.configurations) == 1:
        order = np.argsort(best.dice)
        missed = best.patients.missed.to_numpy()[order] > 0
        # A minimum height of 0.004 keeps the colour of a bar visible where Dice is 0.
        axes.bar(
            range(len(order)),
            np.maximum(best.dice[order], 0.004),
            color=np.where(missed, ORANGE, BLUE),
            width=0.85,
        )
        axes.axhline(best.dice.mean(), color="black", linewidth=1)
        axes.text(
            len(order) - 0.4,
            best.dice.mean(),
            f" mean {best.dice.mean():.3f}",
            verticalalignment="center",
        )
        axes.set_xticks([])
        axes.set_ylim(0, 1)
        patients = format_patients(comparison.volumes, comparison.patients)
        _set_title(axes, f"Dice of each of {patients}, sorted; orange: missed")
        return figure
    other = comparison.baseline if comparison.baseline is not best else comparison.configurations[1]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.scatter(other.dice, best.dice, s=22, color=BLUE, alpha=0.7, linewidths=0)
    axes.set_xlabel(f"Dice of {other.label}")
    axes.set_ylabel(f"Dice of {best.label}")
    axes.set_xlim(-0.02, 1.0)
    axes.set_ylim(-0.02, 1.0)
    axes.set_aspect("equal")
    _set_title(axes, "Each patient; above the line the best is better")
    return figure


FIGURES: dict[str, Callable[[Comparison], Any]] = {
    draw.__name__: draw
    for draw in (ranking, differences, patient_by_patient, curves, main_effects, cost)
}


def pareto_front(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """Return the indices of the Pareto front, the cheapest point first.

    No other point has a higher value at the same or a lower cost.
    """
    front: list[int] = []
    # Of points of equal cost the one with the highest value comes first.
    for index in np.lexsort((-value, cost)):
        if not front or value[index] > value[front[-1]]:
            front.append(int(index))
    return front


def _validation_curve(
    history: list[dict[str, Any]], by_time: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs, or minutes if `by_time`, and validation Dice at each of them."""
    rows = [row["metrics"] for row in history]
    minutes = np.cumsum([row["speed/epoch_seconds"] for row in rows]) / 60
    dice = np.array([row.get("val/dice", np.nan) for row in rows])
    # With validate_every, some epochs have no validation.
    validated = np.isfinite(dice)
    return (minutes if by_time else np.arange(len(rows)))[validated], dice[validated]


def _label_rows(axes: Any, labels: Sequence[str]) -> None:
    """Label the rows of a horizontal plot from top to bottom."""
    # A label may contain `$`, which matplotlib would read as mathematics.
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)


def _set_figure_title(figure: Any, text: str) -> None:
    """Set a title that starts at the left edge of the figure, for text wider than the axes."""
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=11, parse_math=False)


def _set_title(axes: Any, text: str) -> None:
    """Set the title of a plot and remove its upper and right border."""
    axes.set_title(text, loc="left", fontweight="bold", fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
