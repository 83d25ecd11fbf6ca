"""Report of a search: best trials, importance of each setting, commands for the best, picture."""

import shlex
import warnings
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from brainseg.config.overrides import without_settings
from brainseg.reports.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from brainseg.reports.tables import format_duration
from brainseg.tuning.study import Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Trials in the table.
MAX_TRIALS = 10
# Trials that must have ended before importances are computed. With fewer they mean nothing.
MIN_TRIALS = 6
IMPORTANCE_UNKNOWN = f"known from {MIN_TRIALS} trials on, if they differ"
# Reason of a failed trial that has no recorded error.
CRASH_REASON = "its process was killed twice, perhaps because memory was short"


def format_progress(study: Study, trials: int) -> str:
    """Return the number of ended trials, and the time that the `trials` of the study still need.

    The time is estimated from the mean duration of the ended trials and the number of trials that
    run at the same time, this process included.
    """
    ended, running = study.ended_trials(), len(study.trials("RUNNING"))
    seconds = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    left = trials - len(ended)
    if left <= 0 or not seconds:
        return f"{len(ended)} of {trials} trials"
    duration = format_duration(fmean(seconds) * left / (running + 1))
    return f"{len(ended)} of {trials} trials, about {duration} left"


def format_summary(study: Study, fixed: list[str], varied: dict[int, list[str]]) -> str:
    """Draw the picture of a search and return the text that is printed at its end.

    `fixed` are the overrides of all trials, `varied` those of each trial by its number.
    """
    ended, running = study.ended_trials(), study.trials("RUNNING")
    best_first = sorted(
        (trial for trial in ended if trial.state.name == "COMPLETE"),
        key=lambda trial: (-_value(trial), trial.number),
    )
    counts = {
        "finished": len(best_first),
        "pruned": _count(ended, "PRUNED"),
        "failed": _count(ended, "FAIL"),
        "running": len(running),
    }
    # A count of 0 is printed for finished trials alone.
    states = ", ".join(
        f"{number} {state}" for state, number in counts.items() if number or state == "finished"
    )
    lines = [f"\nstudy {study.name}: {study.count()} trials: {states}   ({study.place})"]
    lines += [
        f"  trial {trial.number} failed: {trial.user_attrs.get('reason', CRASH_REASON)}"
        for trial in ended
        if trial.state.name == "FAIL"
    ]
    if not best_first:
        return "\n".join([*lines, "no trial has finished yet"])
    lines += ["", "  trial  val/dice  settings"]
    lines += [
        f"  {trial.number:5d}  {_value(trial):8.4f}  {' '.join(varied[trial.number])}"
        for trial in best_first[:MAX_TRIALS]
    ]
    shares = compute_importance(ended)
    listed = (
        ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) or IMPORTANCE_UNKNOWN
    )
    lines += ["", f"importance:  {listed}"]
    picture = study.folder / "search.png"
    draw_search(ended, shares, picture)
    best = best_first[0]
    best_folder = best.user_attrs["folder"]
    # `output` is the root folder of all trials, so that a single run does not need it.
    overrides = [*without_settings(fixed, ("output",)), *varied[best.number]]
    lines += [
        f"picture:     {picture}",
        f"best:        trial {best.number}, val/dice {_value(best):.4f}, {best_folder}",
        "test it:     "
        + shlex.join(["python", "-m", "brainseg.evaluate", f"checkpoint={best_folder}"]),
        "repeat it:   " + shlex.join(["python", "-m", "brainseg.train", *overrides]),
    ]
    return "\n".join(lines)


def compute_importance(trials: "list[FrozenTrial]") -> dict[str, float]:
    """Return the share of each setting in what distinguishes the best trials, the largest first.

    The result is empty if fewer than `MIN_TRIALS` trials have a value, or if all values are equal.

    PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) compares how the best tenth of the trials, at
    least five, and all trials are distributed over the values of a setting. The method uses ranks,
    so that the values of the worst trials have no influence, unlike in fANOVA. A pruned trial takes
    part with its last value. Optuna itself would exclude pruned trials, and with them most of the
    information.
    """
    import optuna

    judged = [trial for trial in trials if trial.state.name != "FAIL"]
    if len(judged) < MIN_TRIALS or len({_value(trial) for trial in judged}) == 1:
        return {}
    # A copy in memory, in which pruned trials are complete.
    study = optuna.create_study(direction="maximize")
    for trial in judged:
        study.add_trial(
            optuna.create_trial(
                params=trial.params, distributions=trial.distributions, value=_value(trial)
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna warns if many trials share the best value.
        warnings.filterwarnings("ignore", message="Target and region quantiles")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(
            target_quantile=min(0.5, max(0.1, 5 / len(judged)))
        )
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def draw_search(trials: "list[FrozenTrial]", shares: dict[str, float], path: Path) -> None:
    """Draw val/dice of every trial with the best so far, and the importances as bars, as PNG."""
    figure = new_figure(11, 4.2)
    history, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    best, steps = 0.0, []
    for trial in (trial for trial in trials if trial.state.name == "COMPLETE"):
        best = max(best, _value(trial))
        steps.append((trial.number, best))
    # The line continues to the last trial, even if that trial did not finish.
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
        points = [(trial.number, _value(trial)) for trial in trials if trial.state.name == state]
        if points:
            history.scatter(
                *zip(*points, strict=True), marker=marker, color=colour, label=label, s=28, zorder=3
            )
    for trial in (trial for trial in trials if trial.state.name == "FAIL"):
        history.axvline(trial.number, color="#d62728", linewidth=1, linestyle=":", label="failed")
    # Handles by label, so that the legend lists "failed" once for any number of failed trials.
    handles = dict(zip(*history.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), frameon=False, loc="outside lower left", ncols=4
    )
    _set_labels(history, "val/dice of each trial", "trial")
    names = list(shares)[::-1]
    bars.barh(names, [shares[name] for name in names], color=BLUE)
    for row, name in enumerate(names):
        bars.text(shares[name], row, f" {shares[name]:.2f}", verticalalignment="center")
    if not shares:
        bars.text(
            0.5,
            0.5,
            IMPORTANCE_UNKNOWN,
            color=GREY,
            horizontalalignment="center",
            transform=bars.transAxes,
        )
        bars.set_yticks([])
    # The number beside a bar of length 1 needs room as well.
    bars.set_xlim(0, 1.1)
    _set_labels(bars, "Importance of each setting", "share")
    save_figure(figure, path)


def _set_labels(axes: Any, title: str, x_label: str) -> None:
    """Set title and horizontal label of a plot and remove its upper and right border."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)
    # Trials are numbered, so that a tick between two integers would have no meaning.
    if x_label == "trial":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _value(trial: "FrozenTrial") -> float:
    """Return val/dice of a trial, for a pruned trial that of its last epoch, or else 0."""
    return float(trial.value) if trial.value is not None else 0.0


def _count(trials: "list[FrozenTrial]", state: str) -> int:
    """Return the number of trials in a state."""
    return sum(trial.state.name == state for trial in trials)
