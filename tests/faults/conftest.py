"""What several fault tests need: a trap for payloads, MONAI imported."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from traps import Trap

FOLDER = Path(__file__).parent
pytest.register_assert_rewrite("mirrored_runs")  # a helper's assertions show their values, too


# Of the tests that come with a few and with all of their cases, these run in `make test`. The few of
# the others are in `make test-slow`.
EVERY_TIME = (
    "test_prepare_killed_at_any_file_operation",
    "test_training_killed_at_any_file_operation",
    "test_training_when_no_file_can_grow_further",
    "test_it_stops_the_run_before_the_update",
    "test_eight_processes_start_on_a_fresh_store",
    "test_a_signal_ends_a_run_that_can_be_resumed",
    "test_a_kill_at_any_moment_with_the_store_is_made_good",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the few cases of all other tests as slow, before tests are deselected by their marks."""
    for item in items:
        name, _, cases = item.name.partition("[")
        if item.path.parent == FOLDER and "few" in cases and name not in EVERY_TIME:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    folder = tmp_path / "trap"
    folder.mkdir()
    (tmp_path / "here").mkdir()
    before = os.getcwd()
    os.chdir(tmp_path / "here")
    sys.path.insert(0, str(folder))
    yield Trap(folder)
    sys.path.remove(str(folder))
    os.chdir(before)


@pytest.fixture(scope="module")
def monai() -> None:
    """Imported beforehand: matplotlib, which comes with it, makes its folders then."""
    import monai.losses
    import monai.networks.nets  # noqa: F401
