"""What a single run prints where stdout is a file: its plan, a line a minute, few scores, one link."""

import re
from pathlib import Path

import pytest

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.runs import progress_bar

TINY = (
    "model.depth=2",
    "model.width=2",
    "epochs=2",
    "device=cpu",
    "device.threads=1",
    "augment=none",
    "output=run",
)


@pytest.fixture
def call(
    phantom_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """Run a command line of train in this process, and return what it prints on stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(
                "train",
                train.run,
                train.check_request,
                [*TINY, f"data.path={phantom_file}", *arguments],
            )
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        return shown.out, shown.err

    return call


def test_a_short_run_prints_its_plan_its_scores_and_one_link(call, tmp_path: Path) -> None:
    shown, _ = call()
    plan, scores = shown.split("Scores of the best epoch")
    assert [line.split(":")[0] for line in plan.splitlines()] == [
        "run folder",
        "device",
        "data",
        "model",
        "note",
    ]
    table = scores.split("val/dice of")[0].splitlines()[3:-1]
    assert 5 <= len(table) <= 8 and table[0].startswith("dice ")
    assert "Metrics are means" not in shown and "mlflow server" not in shown
    assert "run folder:    run\n" in scores and scores.count("http://") == 1
    assert "(opened by: python -m brainseg.ui)" in scores
    # The log of the run has what the terminal leaves out.
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("epoch   ") == 2 and "epoch   " not in shown


def test_a_long_run_prints_a_line_a_minute(call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a minute is no time at all, so that every step has its line."""
    monkeypatch.setattr(progress_bar, "PROGRESS_SECONDS", 0)
    shown, _ = call("tracking=none")
    lines = [line for line in shown.splitlines() if line.startswith("step ")]
    total = int(re.search(r"(\d+) steps of", shown)[1])
    assert len(lines) == total
    score = r"(, no tumour predicted yet|, val/dice 0\.\d{3} \(best 0\.\d{3}\))"
    for number, line in enumerate(lines, 1):
        epoch = int(number > total // 2)
        assert re.fullmatch(
            rf"step {number} of {total}, epoch {epoch}, loss \d\.\d{{3}}{score * epoch}, "
            r"\d:\d\d:\d\d left",
            line,
        ), line


def test_a_failure_is_printed_once(call, tmp_path: Path) -> None:
    shown, error = call("optimizer.lr=1e30", "tracking=none", code=1)
    assert error.startswith("run failed: NonFiniteError: ") and error.count("\n") == 1
    assert "log of the run: run/log.txt" in error
    assert "NonFiniteError" not in shown and "Traceback" not in shown
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_minus_v_prints_the_traceback_and_the_epochs(call) -> None:
    shown, _ = call("optimizer.lr=1e30", "tracking=none", "-v", code=1)
    assert "Traceback" in shown
