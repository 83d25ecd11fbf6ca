"""What a search found, for a reader: the best trials, the importance of each setting, the command of the best, one picture."""

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config.overrides import without_settings
from brainseg.reports.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from brainseg.tuning.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SHOWN = 10  # trials in the table
ENOUGH = 6  # trials from which an importance says anything
UNKNOWN = f"known from {ENOUGH} trials on, if they differ"
VANISHED = "its process vanished twice (killed, or out of memory)"


def format_summary(study: Study, fixed: list[str], varied: dict[int, list[str]]) -> str:
    """The last lines of a search; draws its picture. `fixed` are the overrides of all trials, `varied` those of each by number."""
    ended, running = study.ended(), study.trials("RUNNING")
    best_first = sorted(
        (one for one in ended if one.state.name == "COMPLETE"),
        key=lambda one: (-_value(one), one.number),
    )
    counts = {
        "finished": len(best_first),
        "pruned": _count(ended, "PRUNED"),
        "failed": _count(ended, "FAIL"),
        "under way": len(running),
    }
    counted = ", ".join(
        f"{number} {state}" for state, number in counts.items() if number or state == "finished"
    )
    lines = [
        f"\nstudy {study.database.stem}: {study.count()} trials: {counted}   ({study.database})"
    ]
    lines += [
        f"  trial {one.number} failed: {one.user_attrs.get('reason', VANISHED)}"
        for one in ended
        if one.state.name == "FAIL"
    ]
    if not best_first:
        return "\n".join([*lines, "no trial has finished yet"])
    lines += ["", "  trial  val/dice  settings"]
    lines += [
        f"  {one.number:5d}  {_value(one):8.4f}  {' '.join(varied[one.number])}"
        for one in best_first[:SHOWN]
    ]
    shares = importance(ended)
    listed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) or UNKNOWN
    lines += ["", f"importance:  {listed}"]
    picture = study.folder / "search.png"
    draw_search(ended, shares, picture)
    best = best_first[0]
    command = [
        "python",
        "-m",
        "brainseg.train",
        *without_settings(fixed, ("output",)),
        *varied[best.number],
    ]  # which is the root of all trials
    test = ["python", "-m", "brainseg.evaluate", f"checkpoint={best.user_attrs['folder']}"]
    lines += [
        f"picture:     {picture}",
        f"best:        trial {best.number}, val/dice {_value(best):.4f}, {best.user_attrs['folder']}",
        f"test it:     {shlex.join(test)}",
        f"repeat it:   {shlex.join(command)}",
    ]
    return "\n".join(lines)


def importance(trials: "list[FrozenTrial]") -> dict[str, float]:
    """The share of each setting in what sets the best trials apart, the largest first; empty before there are enough.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) compares how the best tenth, at least five trials, and all trials are
    spread over a setting's values. It goes by ranks: unlike fANOVA it is not led by how bad the worst are, and a pruned trial
    may take part with its last value (Optuna itself would leave it out, and with it most of what was learnt).
    """
    import optuna

    judged = [one for one in trials if one.state.name != "FAIL"]
    if len(judged) < ENOUGH or len({_value(one) for one in judged}) == 1:
        return {}
    study = optuna.create_study(direction="maximize")  # in memory
    for one in judged:
        study.add_trial(
            optuna.create_trial(
                params=one.params, distributions=one.distributions, value=_value(one)
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings(
            "ignore", message="Target and region quantiles"
        )  # so many share the best value
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(
            target_quantile=min(0.5, max(0.1, 5 / len(judged)))
        )
        return {
            name: float(share)
            for name, share in optuna.importance.get_param_importances(
                study, evaluator=evaluator
            ).items()
        }


def draw_search(trials: "list[FrozenTrial]", shares: dict[str, float], path: Path) -> None:
    """Draw every trial's val/dice with the best so far, and the importances as bars, as PNG."""
    figure = new_figure(11, 4.2)
    history, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    best, steps = 0.0, []
    for one in (one for one in trials if one.state.name == "COMPLETE"):
        best = max(best, _value(one))
        steps.append((one.number, best))
    steps.append((trials[-1].number, best))
    history.step(
        *zip(*steps, strict=True),
        where="post",
        color=ORANGE,
        linewidth=1.8,
        label=f"best so far, {best:.3f}",
    )
    for state, label, marker, colour in (
        ("COMPLETE", "finished", "o", BLUE),
        ("PRUNED", "pruned", "x", GREY),
    ):
        points = [(one.number, _value(one)) for one in trials if one.state.name == state]
        if points:
            history.scatter(
                *zip(*points, strict=True), marker=marker, color=colour, label=label, s=28, zorder=3
            )
    for one in (one for one in trials if one.state.name == "FAIL"):
        history.axvline(one.number, color="#d62728", linewidth=1, linestyle=":", label="failed")
    entries = dict(zip(*history.get_legend_handles_labels()[::-1], strict=True))  # failed once
    figure.legend(
        entries.values(), entries.keys(), frameon=False, loc="outside lower left", ncols=4
    )
    _plain(history, "val/dice of each trial", "trial")
    names = list(shares)[::-1]
    bars.barh(names, [shares[name] for name in names], color=BLUE)
    for row, name in enumerate(names):
        bars.text(shares[name], row, f" {shares[name]:.2f}", verticalalignment="center")
    if not shares:
        bars.text(
            0.5, 0.5, UNKNOWN, color=GREY, horizontalalignment="center", transform=bars.transAxes
        )
        bars.set_yticks([])
    bars.set_xlim(0, 1.1)
    _plain(bars, "Importance of each setting", "share")
    save_figure(figure, path)


def _plain(axes: Any, title: str, across: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(across)
    axes.spines[["top", "right"]].set_visible(False)
    if across == "trial":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _value(trial: "FrozenTrial") -> float:
    """Its val/dice; of a pruned trial that of its last epoch."""
    return float(trial.value) if trial.value is not None else 0.0


def _count(trials: "list[FrozenTrial]", state: str) -> int:
    return sum(one.state.name == state for one in trials)
