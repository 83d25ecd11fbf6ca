"""Each network of the table in docs/extending.md trains for two steps, is evaluated, and loads again."""

import json
import math
import re
from pathlib import Path

import pytest

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.prediction.trained_model import load_checkpoint

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| `(\{.*\})` \| (\d) × (\d+) × \d+ \|", PAGE, re.MULTILINE)


def test_the_table_is_read_and_each_row_differs() -> None:
    assert len(ROWS) == len(set(ROWS)) == 23
    assert sum("deep_supervision: true" in options for _, options, _, _ in ROWS) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "channels", "size"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS]
)
def test_a_network_of_the_table_trains_for_two_steps(
    name: str,
    options: str,
    channels: str,
    size: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        "model=monai",
        f"model.name={name}",
        f"model.options={options}",
        "data.phantom.patients=10",
        "data.phantom.slices=4",
        f"data.phantom.size={size}",
        *(["data.channel=FLAIR"] if channels == "1" else []),
        # Seven patients train, which are 28 slices.
        "batch_size=14",
        "epochs=1",
        "device=cpu",
        "tracking=none",
        "predictions=none",
        "output=run",
    ]
    with pytest.raises(SystemExit) as stop:
        run_command("train", train.run, train.check_request, settings)
    assert stop.value.code == 0
    (row,) = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert row["step"] == 2 and math.isfinite(row["metrics"]["train/loss"])
    assert 0 <= row["metrics"]["val/dice"] <= 1
    assert load_checkpoint("run").network().training is False
