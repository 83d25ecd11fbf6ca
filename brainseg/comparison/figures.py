"""Figures of a comparison, each a function of it that returns a matplotlib figure, or None where there is nothing to draw."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brainseg.comparison.compare import Comparison
from brainseg.comparison.names import varying_settings
from brainseg.reports.figures import BLUE, GREY, ORANGE, new_figure
from brainseg.reports.tables import interval

LIGHT = "#b9c7d3"
SHOWN = 24  # configurations in a figure; the table and the CSV have all
PANELS = 8  # settings whose effect is drawn side by side; of more, no mean is over the same others


def ranking(comparison: Comparison) -> Any:
    """Mean Dice with its 95 % interval, best configuration first; each patient is a dot, a missed one is orange."""
    shown = comparison.configurations[:SHOWN]
    figure = new_figure(9, 1.6 + 0.52 * len(shown))
    axes = figure.subplots()
    generator = np.random.default_rng(0)  # the dots' jitter alone
    for place, one in enumerate(shown):
        row = comparison.table.iloc[place]
        height = place + generator.uniform(-0.16, 0.16, len(one.dice))
        missed = one.patients.missed.to_numpy() > 0
        axes.scatter(one.dice, height, s=14, color=np.where(missed, ORANGE, LIGHT), linewidths=0)
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
            f"{row.dice:.3f}  [{interval(row.dice_low, row.dice_high)}]",
            verticalalignment="center",
            fontsize=9,
            transform=axes.get_yaxis_transform(),
        )
    _rows(axes, [one.label for one in shown])
    axes.set_xlim(-0.02, 1.0)
    of_all = (
        ""
        if len(shown) == len(comparison.configurations)
        else f" (the first {SHOWN} of {len(comparison.configurations)})"
    )
    _title(
        axes,
        f"Dice of {comparison.patients} {comparison.role} patients, mean and 95 % interval{of_all}",
    )
    return figure


def differences(comparison: Comparison) -> Any:
    """Mean paired difference of each configuration to the baseline, with its interval; blue where Holm's p is below 0.05."""
    others = list(comparison.table[comparison.table.p.notna()].itertuples())[:SHOWN]
    if not others:
        return None
    figure = new_figure(9, 1.6 + 0.45 * len(others))
    axes = figure.subplots()
    for height, row in enumerate(others):
        colour = BLUE if row.p_holm < 0.05 else GREY
        axes.plot(
            [row.difference_low, row.difference_high],
            [height, height],
            color=colour,
            linewidth=2.5,
            solid_capstyle="butt",
        )
        axes.plot([row.difference], [height], "o", color=colour)
        text = f"{row.difference:+.3f}   {row.wins:.0f} won, {row.losses:.0f} lost   p {row.p_holm:.2g}"
        axes.text(
            1.02,
            height,
            text,
            verticalalignment="center",
            fontsize=9,
            transform=axes.get_yaxis_transform(),
        )
    axes.axvline(0, color="black", linewidth=1)
    _rows(axes, [row.configuration for row in others])
    axes.locator_params(axis="x", nbins=5)  # long names leave the axis little room
    _page_title(
        figure,
        f"Difference in Dice to {comparison.baseline.label}\npatient by patient; p by Wilcoxon and Holm",
    )
    return figure


def curves(comparison: Comparison) -> Any:
    """Validation Dice of each configuration, averaged over its runs (the thin lines), against epochs, or minutes where those were given."""
    shown = comparison.configurations[:10]
    by_time = any(run.config.max_minutes is not None for one in shown for run in one.runs)
    figure = new_figure(9, 4.4)
    axes = figure.subplots()
    for place_of, one in enumerate(shown):
        colour = f"C{place_of}"
        lines = [_line(run.history, by_time) for run in one.runs]
        for place, value in lines if len(lines) > 1 else ():
            axes.plot(place, value, color=colour, linewidth=0.7, alpha=0.35)
        length = min(len(value) for _, value in lines)  # where all repeats still run
        mean = [
            np.mean([part[:length] for part in parts], axis=0) for parts in zip(*lines, strict=True)
        ]
        axes.plot(
            *mean,
            color=colour,
            linewidth=2,
            label=one.label,
            marker="o" if length < 15 else None,
            markersize=3,
        )
    axes.set_xlabel("minutes of training and validation" if by_time else "epoch")
    axes.xaxis.get_major_locator().set_params(integer=not by_time)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    _title(
        axes,
        "Validation Dice while training"
        + ("" if len(shown) == len(comparison.configurations) else ", the ten best"),
    )
    return figure


def main_effects(comparison: Comparison) -> Any:
    """For each setting with several values: every configuration's mean Dice, and the mean and spread over those that share a value.

    The mean is over configurations whose other settings were run with each of the values: else, as where one setting at a time was
    taken back, a value would pay for what else was changed beside it.
    """
    settings = varying_settings([one.runs[0].settings for one in comparison.configurations])
    if len(comparison.configurations) < 3 or not 0 < len(settings) <= PANELS:
        return None
    figure = new_figure(
        min(3.2 * len(settings) + 2.5, 16), 3.8
    )  # wide enough for the title above one panel
    for axes, name in zip(
        figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True
    ):
        groups = effect(comparison, name, settings)
        for place, (every, alike) in enumerate(groups.values()):
            axes.scatter(
                [place + 0.12] * len(every), every, s=22, color=GREY, alpha=0.6, linewidths=0
            )
            if alike:
                spread = np.std(alike, ddof=1) if len(alike) > 1 else 0
                axes.errorbar(
                    [place], [np.mean(alike)], yerr=[spread], color=BLUE, marker="o", capsize=4
                )
        if all(alike for _, alike in groups.values()):
            axes.plot(
                range(len(groups)),
                [np.mean(alike) for _, alike in groups.values()],
                color=BLUE,
                linewidth=1,
            )
        axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(name.removesuffix(".name"), loc="left", fontsize=10)
    title = "Mean Dice by setting; grey: each configuration\nblue: mean and standard deviation over those whose\n"
    title += "other settings were run with each of the values"
    _page_title(figure, title)
    return figure


def effect(
    comparison: Comparison, name: str, settings: Sequence[str]
) -> dict[str, tuple[list[float], list[float]]]:
    """By value of `name`: the mean Dice of every configuration, and of those whose other `settings` were run with each of its values."""
    groups: dict[str, dict[tuple[str, ...], float]] = {}
    for one in sorted(
        comparison.configurations, key=lambda one: _sortable(one.runs[0].settings.get(name))
    ):
        own = one.runs[0].settings
        others = tuple(str(own.get(other)) for other in settings if other != name)
        groups.setdefault(str(own.get(name)), {})[others] = float(one.dice.mean())
    common = set.intersection(*(set(group) for group in groups.values()))
    return {
        value: (list(group.values()), [dice for others, dice in group.items() if others in common])
        for value, group in groups.items()
    }


def cost(comparison: Comparison) -> Any:
    """Dice against parameters and against seconds of a run; the line joins those that nothing cheaper beats (the Pareto front)."""
    table = comparison.table
    if len(table) < 3:
        return None
    figure = new_figure(11, 4.2)
    for axes, column in zip(
        figure.subplots(1, 2, sharey=True), ("parameters", "seconds"), strict=True
    ):
        front = pareto(table[column].to_numpy(), table.dice.to_numpy())
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
        _title(axes, f"Dice against {column}")
    return figure


def patient_by_patient(comparison: Comparison) -> Any:
    """Of one configuration every patient, sorted; of several the best against the baseline (or the runner-up), patient by patient."""
    figure = new_figure(5, 4.6) if len(comparison.configurations) > 1 else new_figure(9, 3.6)
    axes = figure.subplots()
    best = comparison.configurations[0]
    if len(comparison.configurations) == 1:
        order = np.argsort(best.dice)
        missed = best.patients.missed.to_numpy()[order] > 0
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
        _title(axes, f"Dice of each of the {len(order)} patients, sorted; orange: missed")
        return figure
    other = comparison.baseline if comparison.baseline is not best else comparison.configurations[1]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.scatter(other.dice, best.dice, s=22, color=BLUE, alpha=0.7, linewidths=0)
    axes.set_xlabel(f"Dice of {other.label}")
    axes.set_ylabel(f"Dice of {best.label}")
    axes.set_xlim(-0.02, 1.0)
    axes.set_ylim(-0.02, 1.0)
    axes.set_aspect("equal")
    _title(axes, "Each patient; above the line the best is better")
    return figure


FIGURES: dict[str, Callable[[Comparison], Any]] = {
    one.__name__: one
    for one in (ranking, differences, patient_by_patient, curves, main_effects, cost)
}


def pareto(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """Indices of the points that no other beats in value at the same or a lower cost, the cheapest first."""
    front: list[int] = []
    for index in np.lexsort((-value, cost)):
        if not front or value[index] > value[front[-1]]:
            front.append(int(index))
    return front


def _line(history: list[dict[str, Any]], by_time: bool) -> tuple[np.ndarray, np.ndarray]:
    rows = [row["metrics"] for row in history]
    minutes = np.cumsum([row["speed/epoch_seconds"] for row in rows]) / 60
    dice = np.array([row.get("val/dice", np.nan) for row in rows])
    validated = np.isfinite(dice)  # under validate_every not each epoch
    return (minutes if by_time else np.arange(len(rows)))[validated], dice[validated]


def _sortable(value: Any) -> tuple[bool, float, str]:
    return (
        (True, value, "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (False, 0.0, str(value))
    )


def _rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)


def _page_title(figure: Any, text: str) -> None:
    """From the page's left edge on, for what is longer than the axes are wide."""
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=11, parse_math=False)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontweight="bold", fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
