"""--help, docs/configuration.md and what is enforced say the same: all of it is read off config/ and conf/."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from brainseg import config as schema
from brainseg.cli.commands import COMMANDS
from brainseg.cli.main import run_command
from brainseg.config import TYPES
from brainseg.config.compose import CONFIGS
from brainseg.config.hydra_errors import setting_names
from brainseg.core.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]


def call(capsys: pytest.CaptureFixture[str], command: str, *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(command, print, print, list(argv))
    shown = capsys.readouterr()
    assert stop.value.code == code, shown.err
    return shown.out if code == 0 else shown.err


def apart(*argv: str) -> str:
    """The same in a process of its own: Hydra's pages set up logging."""
    code = "from brainseg.cli.main import run_command; run_command('train', print, print)"
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True
    ).stdout


def test_the_committed_page_is_current() -> None:
    location = importlib.util.spec_from_file_location(
        "configuration_reference", ROOT / "scripts" / "configuration_reference.py"
    )
    assert location and location.loader
    script: Any = importlib.util.module_from_spec(location)
    location.loader.exec_module(script)
    schema.register_schema()
    assert script.page() == script.PAGE.read_text(), (
        "python scripts/configuration_reference.py writes it anew"
    )


@pytest.mark.parametrize("command", TYPES)
def test_help_has_every_setting_once_with_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = call(capsys, command, "--help")
    assert text.startswith(
        f"brainseg {command}: {COMMANDS[command]}\n\n    python -m brainseg.{command}"
    )
    schema.register_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        names = [re.sub(r"\.options\..*", ".options", name) for name in setting_names(command)]
    for name in dict.fromkeys(names):
        lone_group = name == "split" and command == "evaluate"
        assert (
            len(
                re.findall(
                    rf"^  {re.escape(name)}=" if not lone_group else "^split: null",
                    text,
                    re.MULTILINE,
                )
            )
            == 1
        ), name
    assert max(map(len, text.splitlines())) <= 140


def test_help_follows_the_overrides(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "scheduler.epochs" not in call(capsys, "train", "--help")
    text = call(capsys, "train", "scheduler=step", "epochs=7", "--help")
    assert (
        re.search(r"^  scheduler\.epochs=\[30\] +epochs from which", text, re.MULTILINE)
        and "  epochs=7 " in text
    )
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("name: dice\n")
    text = call(capsys, "train", f"--config-dir={tmp_path}", "--help")
    assert re.search(
        r"^  loss +bce_dice\* bce_dice_slices custom dice mine monai tversky$", text, re.MULTILINE
    )
    assert re.search(r"^  optimizer +adam adamw\* custom sgd$", text, re.MULTILINE)


def test_the_other_pages_work(capsys: pytest.CaptureFixture[str]) -> None:
    composed = OmegaConf.create(apart("--cfg", "job", "model.depth=3"))
    assert (composed.model.depth, composed.scheduler.name) == (3, "cosine")
    assert "scheduler/cosine" in apart("--info", "defaults")
    assert "only one page at a time" in call(capsys, "train", "--help", "--cfg", "job", code=2)
    assert "no such setting" in call(capsys, "train", "--help", "modle.depth=3", code=2)


def test_every_choice_that_is_enforced_is_in_the_help() -> None:
    """What a nonsense value is refused with names the choices; the help must name the same."""
    found = 0
    for kind in vars(schema).values():
        if not is_dataclass(kind) or not isinstance(kind, type):
            continue
        for field in fields(kind):
            hint = get_type_hints(kind)[field.name]
            wrong: Any = ["?"] if list in (hint, getattr(hint, "__origin__", None)) else "?"
            if str not in (hint, *get_args(hint)) or get_origin(hint) is dict:
                continue
            try:
                kind(**{field.name: wrong})
            except RequestError as error:
                _, rule, choices = str(error).partition("must be one of ")
                setting = str(error).partition("=")[0]
                if not rule or setting in ("split.name", "scheduler.name"):  # a file of conf/ each
                    continue
                found += 1
                for choice in choices.split(", "):
                    assert choice in field.metadata["help"], (
                        f"{kind.__name__}.{field.name}: {choice}"
                    )
    assert found > 15
