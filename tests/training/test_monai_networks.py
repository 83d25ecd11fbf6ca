"""Each network of the table in docs/extending.md trains for two steps, is evaluated, and loads again."""

import re
from pathlib import Path

import pytest
from two_steps import check_that_it_trains

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
    check_that_it_trains(
        "model=monai",
        f"model.name={name}",
        f"model.options={options}",
        f"data.phantom.size={size}",
        *(["data.channel=FLAIR"] if channels == "1" else []),
    )
