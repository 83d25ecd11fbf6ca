"""The last lines that a run prints: its main scores, its folder and one link."""

from brainseg.reports import tables
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.mirror import Mirror, sync_command

# The table has the first `MAX_ROWS` of these rows that were measured. The Dice of each class
# follows that of all classes. summary.json has all metrics.
ROWS = ("dice", "dice_median", "patients_missed", "precision", "recall", "hd95", "iou", "loss")
MAX_ROWS = 8


def describe_result(
    folder: RunFolder, metrics: dict[str, float], explanation: str, mirror: Mirror | None
) -> str:
    """Return the last lines that a run prints: its main scores, its folder and one link."""
    split = folder.facts["split"]
    leaky = ", leaky=true: scored patients were trained on" if split["leaky"] else ""
    is_validated = split["validation"] > 0
    scores = tables.metrics_table(
        _main_scores(metrics),
        f"Scores of the {'best' if is_validated else 'last'} epoch, over whole patients{leaky}",
    )
    lines = [*([scores] if metrics else []), explanation, "", f"run folder:    {folder.path}"]
    lines += (
        [mirror.describe()]
        if mirror is not None
        else [f"MLflow:        off; to record the run later: {sync_command(folder.path)}"]
    )
    return "\n".join(lines)


def _main_scores(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the table at the end of a run, of at most `MAX_ROWS` names."""
    names = list(dict.fromkeys(name.split("/", 1)[1] for name in metrics))
    # The Dice of a class is called dice/CLASS.
    of_classes = [name for name in names if name.startswith("dice/")]
    rows = [name for name in (ROWS[0], *of_classes, *ROWS[1:]) if name in names][:MAX_ROWS]
    return {
        name: value
        for row in rows
        for name, value in metrics.items()
        if name.split("/", 1)[1] == row
    }
