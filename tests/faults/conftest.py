"""What several fault tests need: a trap for payloads, MONAI imported."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from traps import Trap

pytest.register_assert_rewrite("mirrored_runs")  # a helper's assertions show their values, too


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
