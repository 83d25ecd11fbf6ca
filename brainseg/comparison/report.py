"""Text of a comparison for the terminal, and its report as one HTML page that opens offline."""

import base64
import html
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.comparison.compare import Comparison
from brainseg.comparison.effects import setting_effects
from brainseg.comparison.runs import ScoredRun
from brainseg.core.files import write_text
from brainseg.reports.tables import format_interval, format_patients

if TYPE_CHECKING:
    import pandas as pd

INTERVAL_NOTE = (
    "Intervals are BCa bootstraps over patients (10,000 draws, fixed seed). They cover the "
    "sampling of patients: how far a number would move on other patients of the same kind. They do "
    "not cover retraining, which the spread over seeds describes. That spread is a standard "
    "deviation, not a standard error."
)
HEADINGS = [
    "",
    "runs",
    "dice",
    "95 % interval",
    "median",
    "missed",
    "spread of seeds",
    "seconds",
    "images/s",
    "s/epoch",
    "memory (GB)",
    "difference",
    "95 % interval",
    "p (Holm)",
    "won:lost",
]
EFFECT_TITLE = "Each setting, averaged over the others"
EFFECT_HEADINGS = [
    *("", "value", "instead of", "pairs", "difference", "95 % interval", "p (Holm)", "won:lost")
]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } img { max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; }
th, td { border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.warning { background: #fdf0e1; border-left: 4px solid #d9730d; padding: .5rem .8rem; }
footer { margin-top: 3rem; color: #666; font-size: 12px; }
"""


def headline(comparison: Comparison) -> str:
    """Return the best configuration and its score, interval and patients as one sentence."""
    best = comparison.table.iloc[0]
    interval = format_interval(best.dice_low, best.dice_high)
    score = (
        f"mean Dice {best.dice:.3f} (95 % interval {interval}), "
        f"median {best.dice_median:.3f}, {_format_missed(best.missed)} of "
        f"{comparison.volumes} {comparison.role_name} {_scored_noun(comparison)} missed"
    )
    count = len(comparison.configurations)
    return (
        f"{best.configuration}: {score}"
        if count == 1
        else f"Best of {count} configurations, {best.configuration}: {score}"
    )


def _scored_noun(comparison: Comparison) -> str:
    """Return what was scored: patients, or volumes if a patient has several."""
    return "patients" if comparison.volumes == comparison.patients else "volumes"


def _format_missed(patients: float) -> str:
    """Return the number of missed patients, with a decimal unless it is an integer.

    The number is a mean over seeds.
    """
    return f"{patients:.1f}".removesuffix(".0")


def _evaluate_arguments(run: ScoredRun) -> str:
    """Return the overrides as a user would type them in the current folder."""
    here = f"{Path.cwd()}/"
    return shlex.join(argument.replace(here, "") for argument in run.evaluate_arguments)


def reader_notes(comparison: Comparison) -> list[str]:
    """Return what a reader must know to interpret the scores, one note each, warnings first."""
    sentences = [*comparison.warnings]
    if comparison.exploratory:
        best_run = comparison.configurations[0].runs[0]
        sentences.append(
            "Exploratory: these are validation patients, on which each run's best epoch was "
            "selected, so the scores are biased upwards. Test the configuration that you choose: "
            f"python -m brainseg.evaluate {_evaluate_arguments(best_run)}"
        )
    sentences += [f"Left out: {label}: {reason}." for label, reason in comparison.left_out]
    sentences.append(f"{comparison.budget[0].upper()}{comparison.budget[1:]}.")
    sentences += _notes(comparison)
    if max(len(configuration.runs) for configuration in comparison.configurations) > 1:
        sentences.append(
            "Before anything is compared, folds are pooled, so that each patient counts once, and "
            "seeds are averaged per patient."
        )
    if comparison.volumes != comparison.patients:
        sentences.append(
            f"{format_patients(comparison.volumes, comparison.patients)}: scores are means over "
            "volumes, while intervals and tests are over patients."
        )
    pairs = len(comparison.configurations) - 1
    if pairs and comparison.patients > 1:
        sentences.append(
            f"{pairs} comparison{'s' * (pairs > 1)} with {comparison.baseline.label}: two-sided "
            "Wilcoxon signed-rank tests over patients (zeros by Pratt), p-values corrected for "
            f"{pairs} by Holm."
        )
    if comparison.patients == 1:
        sentences.append(
            "One patient gives neither an interval nor a test: no number here predicts the scores "
            "of other patients."
        )
    # The smallest p-value of the test belongs to a configuration that wins on every patient. Holm's
    # correction multiplies it by the number of comparisons.
    smallest_p = min(1.0, pairs * 2.0 ** (1 - comparison.patients))
    if pairs and comparison.patients > 1 and smallest_p > 0.05:
        sentences.append(
            f"{comparison.patients} patients cannot give a corrected p below {smallest_p:.2g}, "
            "whatever the difference, and their intervals are too narrow. Use more patients."
        )
    if pairs and comparison.is_baseline_picked:
        named = shlex.quote(f'baseline="{comparison.configurations[-1].label}"')
        sentences.append(
            "The baseline is the best configuration, picked by these same scores, so its lead is "
            f"biased upwards. {named} compares with another configuration."
        )
    return sentences


def _notes(comparison: Comparison) -> list[str]:
    """Return a sentence for each note of the runs, with the runs that have it."""
    runs = [run for configuration in comparison.configurations for run in configuration.runs]
    names: dict[str, list[str]] = {}
    for run in runs:
        if note := " ".join((run.facts.get("note") or "").split()):
            names.setdefault(note, []).append(run.path.name)
    return [
        f"Note on {'all runs' if len(noted) == len(runs) else ', '.join(noted)}: {note}"
        for note, noted in names.items()
    ]


def format_comparison(comparison: Comparison, max_rows: int = 30) -> str:
    """Return headline, table and notes for the terminal, the best configuration first."""
    table = comparison.table
    rows = [_cells(row, comparison) for row in table.head(max_rows).itertuples()]
    lines = [headline(comparison), "", *_align_columns([HEADINGS, *rows])]
    if len(table) > max_rows:
        lines.append(f"... and {len(table) - max_rows} more, in comparison.csv")
    if effects := _effect_cells(comparison):
        lines += ["", f"{EFFECT_TITLE}:", *_align_columns([EFFECT_HEADINGS, *effects])]
    lines += ["", *reader_notes(comparison)]
    lines.append("Intervals are bootstraps over patients; they do not cover retraining.")
    return "\n".join(lines)


def _effect_cells(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table of effects as text, a cell for each of `EFFECT_HEADINGS`."""
    return [
        [
            row.setting.removesuffix(".name"),
            row.value,
            row.instead_of,
            str(row.pairs),
            f"{row.difference:+.3f}",
            format_interval(row.low, row.high, "+.3f"),
            f"{row.p_holm:.2g}",
            f"{row.wins}:{row.losses}",
        ]
        for row in setting_effects(comparison).itertuples()
    ]


def _cells(row: Any, comparison: Comparison) -> list[str]:
    """Return a row of the table as text, a cell for each of `HEADINGS`."""
    cells = [
        row.configuration,
        str(row.runs),
        f"{row.dice:.3f}",
        format_interval(row.dice_low, row.dice_high),
        f"{row.dice_median:.3f}",
    ]
    cells += [
        _format_missed(row.missed),
        "" if math.isnan(row.spread_over_seeds) else f"{row.spread_over_seeds:.3f}",
        f"{row.seconds:.0f}",
        *_speed_cells(row, comparison),
        "" if math.isnan(row.memory_gb) else f"{row.memory_gb:.1f}",
    ]
    if row.configuration != comparison.baseline.label:
        # One patient gives a difference, but no test.
        test_cells = (
            [f"{row.p_holm:.2g}", f"{row.wins:.0f}:{row.losses:.0f}"]
            if not math.isnan(row.p)
            else ["none", ""]
        )
        return [
            *cells,
            f"{row.difference:+.3f}",
            format_interval(row.difference_low, row.difference_high, "+.3f"),
            *test_cells,
        ]
    return [*cells, "baseline" if len(comparison.table) > 1 else "", "", "", ""]


def _speed_cells(row: Any, comparison: Comparison) -> list[str]:
    """Return images per second and seconds per epoch, or empty cells on a single device."""
    if not comparison.compares_devices:
        return ["", ""]
    speeds = ((row.images_per_second, ".0f"), (row.epoch_seconds, ".1f"))
    return [f"{speed:{form}}" if math.isfinite(speed) else "" for speed, form in speeds]


def _align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, the first column left-aligned and the rest right-aligned.

    The first row is the heading. A column that is empty below its heading is left out.
    """
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    labels, *numbers = (
        [cell.rjust(width) for cell in column]
        for column, width in zip(columns, widths, strict=True)
    )
    labels = [cell.strip().ljust(widths[0]) for cell in labels]
    return ["  ".join(row) for row in zip(labels, *numbers, strict=True)]


def write_page(
    path: Path,
    comparison: Comparison,
    pictures: Mapping[str, Path],
    tables: Mapping[str, "pd.DataFrame"],
    made_by: str,
    viewer: str | None = None,
) -> None:
    """Write the report page.

    The page contains all `pictures` and `tables`, no script, and nothing that a browser would have
    to fetch. It links to the file `viewer` in the same folder.
    """
    import pandas as pd

    title = html.escape(headline(comparison))
    exploratory = ["Exploratory: validation patients."] if comparison.exploratory else []
    warnings = [*comparison.warnings, *exploratory]
    body = [f"<h1>{title}</h1>"]
    body += [f'<p class="warning">{html.escape(warning)}</p>' for warning in warnings]
    if viewer is not None:
        body.append(
            f'<p><a href="{html.escape(viewer)}">Look at the patients, slice by slice</a></p>'
        )
    body += ["<h2>Configurations, best first</h2>", _html_table(_cell_table(comparison))]
    if effects := _effect_cells(comparison):
        table = pd.DataFrame(effects, columns=EFFECT_HEADINGS)
        body += [f"<h2>{EFFECT_TITLE}</h2>", _html_table(table)]
    body += [
        f'<p><img alt="{name}" src="data:image/png;base64,{_encode_base64(file)}"></p>'
        for name, file in pictures.items()
    ]
    for heading, table in tables.items():
        body += [f"<h2>{html.escape(heading)}</h2>", _html_table(table)]
    body += [
        "<h2>How to read it</h2>",
        "<ul>",
        *(
            f"<li>{html.escape(sentence)}</li>"
            for sentence in [*reader_notes(comparison), INTERVAL_NOTE]
        ),
        "</ul>",
    ]
    runs = [
        f"{configuration.label}: {run.path}, code {run.facts['code']['sha256'][:10]}"
        + "".join(f", {tag}" for tag in run.facts.get("tags", []))
        for configuration in comparison.configurations
        for run in configuration.runs
    ]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in runs)
    body += [f"<h2>Runs</h2><ul>{lines}</ul>", f"<footer>{html.escape(made_by)}</footer>"]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page = f'<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'
    write_text(path, f"<!doctype html>{page}\n")


def write_tables(folder: Path, comparison: Comparison) -> None:
    """Write the table of the terminal as comparison.md and comparison.tex, for a paper.

    comparison.tex is a tabular environment, which needs the package booktabs.
    """
    table = _cell_table(comparison)
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
    write_text(folder / "comparison.md", f"{rows}\n{INTERVAL_NOTE}\n")
    layout = "l" + "r" * (len(table.columns) - 1)
    write_text(
        folder / "comparison.tex", table.to_latex(index=False, escape=True, column_format=layout)
    )


def _cell_table(comparison: Comparison) -> "pd.DataFrame":
    """Return the table of the terminal, without the columns that have no content."""
    import pandas as pd

    cells = pd.DataFrame(
        [_cells(row, comparison) for row in comparison.table.itertuples()], columns=HEADINGS
    )
    return cells.loc[:, (cells != "").any()]


def _html_table(table: "pd.DataFrame") -> str:
    """Return a table as HTML that scrolls sideways where the page is too narrow."""

    def format_number(value: float) -> str:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"

    # Undefined values become empty cells. Only columns of objects can contain text beside numbers.
    filled = table.astype(object).where(table.notna(), "")
    content = filled.to_html(index=False, border=0, float_format=format_number)
    return f'<div class="wide">{content}</div>'


def _encode_base64(path: Path) -> str:
    """Return the content of a file in Base64, for a `data:` address in the page."""
    return base64.b64encode(path.read_bytes()).decode()
