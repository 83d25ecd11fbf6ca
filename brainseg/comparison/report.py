"""A comparison in words, on the terminal and as one HTML page that opens offline."""

import base64
import html
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.comparison.compare import Comparison
from brainseg.comparison.runs import ScoredRun
from brainseg.core.files import write_text
from brainseg.reports.tables import interval

if TYPE_CHECKING:
    import pandas as pd

COVERS = (
    "Intervals are percentile bootstraps over patients (10,000 draws, fixed seed). They cover the sampling of patients: how far a number "
    "would move on other patients of the same kind. They do not cover retraining; the spread over seeds tells of that, and is "
    "a standard deviation, not a standard error."
)
HEADS = [
    "",
    "runs",
    "dice",
    "95 % interval",
    "median",
    "missed",
    "spread of seeds",
    "seconds",
    "difference",
    "95 % interval",
    "p (Holm)",
    "won:lost",
]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } img { max-width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .warning { background: #fdf0e1; border-left: 4px solid #d9730d; padding: .5rem .8rem; }
footer { margin-top: 3rem; color: #666; font-size: 12px; }
"""


def headline(comparison: Comparison) -> str:
    """The first sentence: which configuration is best, its score with interval, and on whom."""
    best = comparison.table.iloc[0]
    score = f"mean Dice {best.dice:.3f} (95 % interval {interval(best.dice_low, best.dice_high)}), median {best.dice_median:.3f}, "
    score += f"{_counted(best.missed)} of {comparison.patients} {comparison.role} patients missed"
    count = len(comparison.configurations)
    return (
        f"{best.configuration}: {score}"
        if count == 1
        else f"Best of {count} configurations, {best.configuration}: {score}"
    )


def _counted(patients: float) -> str:
    """Patients missed: a mean over seeds, so that it need not be whole."""
    return f"{patients:.1f}".removesuffix(".0")


def _shown(run: ScoredRun) -> str:
    """Return a run's folder as one would type it here; the checkpoint knows its data."""
    path = run.path.relative_to(Path.cwd()) if run.path.is_relative_to(Path.cwd()) else run.path
    return shlex.quote(f"checkpoint={path}")


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to take the numbers for what they are, a sentence each; warnings first."""
    found = [*comparison.warnings]
    if comparison.exploratory:
        found.append(
            "Exploratory: these are validation patients, on which each run's best epoch was selected; scores are flattered. "
            f"Test the one chosen: python -m brainseg.evaluate {_shown(comparison.configurations[0].runs[0])}"
        )
    found += [f"Left out: {name}: {why}." for name, why in comparison.left_out]
    found.append(f"{comparison.chances[0].upper()}{comparison.chances[1:]}.")
    runs = max(len(one.runs) for one in comparison.configurations)
    if runs > 1:
        found.append(
            "Folds are pooled, so that each patient counts once, and seeds averaged per patient, before anything is compared."
        )
    pairs = len(comparison.configurations) - 1
    if pairs and comparison.patients > 1:
        found.append(
            f"{pairs} comparison{'s' * (pairs > 1)} with {comparison.baseline.label}: two-sided Wilcoxon signed-rank tests over "
            f"patients (zeros by Pratt), p-values corrected for {pairs} by Holm."
        )
    if comparison.patients == 1:
        found.append(
            "One patient gives neither an interval nor a test: no number here says how other patients would score."
        )
    least = min(1.0, pairs * 2.0 ** (1 - comparison.patients))  # where one wins on every patient
    if pairs and comparison.patients > 1 and least > 0.05:
        found.append(
            f"{comparison.patients} patients cannot give a corrected p below {least:.2g}, whatever the difference, and their "
            "intervals are too narrow: take more."
        )
    if pairs and comparison.picked:
        named = shlex.quote(f'baseline="{comparison.configurations[-1].label}"')
        found.append(
            f"The baseline is the best, picked by these same scores: its lead is flattered. {named} compares with another."
        )
    return found


def text(comparison: Comparison, shown: int = 30) -> str:
    """The table for the terminal, best first, and what a reader must know."""
    lines = [
        headline(comparison),
        "",
        *_aligned(
            [HEADS, *(_cells(row, comparison) for row in comparison.table.head(shown).itertuples())]
        ),
    ]
    if len(comparison.table) > shown:
        lines.append(f"... and {len(comparison.table) - shown} more, in comparison.csv")
    return "\n".join(
        [
            *lines,
            "",
            *notes(comparison),
            "Intervals are bootstraps over patients; they do not cover retraining.",
        ]
    )


def _cells(row: Any, comparison: Comparison) -> list[str]:
    cells = [
        row.configuration,
        str(row.runs),
        f"{row.dice:.3f}",
        interval(row.dice_low, row.dice_high),
        f"{row.dice_median:.3f}",
    ]
    cells += [
        _counted(row.missed),
        "" if math.isnan(row.spread_over_seeds) else f"{row.spread_over_seeds:.3f}",
        f"{row.seconds:.0f}",
    ]
    if row.configuration != comparison.baseline.label:
        tested = (
            [f"{row.p_holm:.2g}", f"{row.wins:.0f}:{row.losses:.0f}"]
            if not math.isnan(row.p)
            else ["none", ""]
        )
        return [
            *cells,
            f"{row.difference:+.3f}",
            interval(row.difference_low, row.difference_high, "+.3f"),
            *tested,
        ]
    return [*cells, "baseline" if len(comparison.table) > 1 else "", "", "", ""]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first to the left; a column that is empty below its head is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    first, *others = (
        [cell.rjust(width) for cell in column]
        for column, width in zip(columns, widths, strict=True)
    )
    return [
        "  ".join(row)
        for row in zip([cell.strip().ljust(widths[0]) for cell in first], *others, strict=True)
    ]


def write_page(
    path: Path,
    comparison: Comparison,
    pictures: Mapping[str, Path],
    tables: Mapping[str, "pd.DataFrame"],
    made_by: str,
    viewer: str | None = None,
) -> None:
    """Write the page: every picture and table of the comparison inside it, no script, nothing fetched; a link to `viewer` beside it."""
    import pandas as pd

    best = html.escape(headline(comparison))
    warned = [
        *comparison.warnings,
        *(["Exploratory: validation patients."] if comparison.exploratory else []),
    ]
    body = [f"<h1>{best}</h1>", *(f'<p class="warning">{html.escape(one)}</p>' for one in warned)]
    if viewer is not None:
        body.append(
            f'<p><a href="{html.escape(viewer)}">Look at the patients, slice by slice</a></p>'
        )
    cells = pd.DataFrame(
        [_cells(row, comparison) for row in comparison.table.itertuples()], columns=HEADS
    )
    body += ["<h2>Configurations, best first</h2>", _table(cells.loc[:, (cells != "").any()])]
    body += [
        f'<p><img alt="{name}" src="data:image/png;base64,{_encoded(file)}"></p>'
        for name, file in pictures.items()
    ]
    for title, table in tables.items():
        body += [f"<h2>{html.escape(title)}</h2>", _table(table)]
    body += [
        "<h2>How to read it</h2>",
        "<ul>",
        *(f"<li>{html.escape(one)}</li>" for one in [*notes(comparison), COVERS]),
        "</ul>",
    ]
    runs = [
        f"{one.label}: {run.path}, code {run.facts['code']['sha256'][:10]}"
        for one in comparison.configurations
        for run in one.runs
    ]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in runs)
    body += [f"<h2>Runs</h2><ul>{lines}</ul>", f"<footer>{html.escape(made_by)}</footer>"]
    head = f'<meta charset="utf-8"><title>{best}</title><style>{STYLE}</style>'
    write_text(
        path,
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n',
    )


def _table(table: "pd.DataFrame") -> str:
    def written(value: float) -> str:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"

    plain = (
        table.astype(object)
        .where(table.notna(), "")
        .to_html(index=False, border=0, float_format=written)
    )
    return f'<div class="wide">{plain}</div>'


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
