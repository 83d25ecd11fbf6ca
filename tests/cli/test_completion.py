"""Tab in a real bash: commands, then groups, choices and settings of that command, then files; and what is printed for others."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from brainseg import completion
from brainseg.cli.commands import COMMANDS
from brainseg.config import TYPES

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="no bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "brainseg.bash"
    path.write_text(completion.bash_script() + "\n")
    return path


def complete(script: Path, line: str) -> list[str]:
    """What bash would offer for a line: it splits words at `=`, as it is set by default."""
    words = [
        part
        for word in line.split(" ")
        for part in (word.replace("=", " = ").strip().split(" ") if "=" in word else [word])
    ]
    commands = f"""source {shlex.quote(str(script))}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}
        COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; compopt() {{ :; }}
        _brainseg; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(
        [str(BASH), "--norc", "-c", commands],
        capture_output=True,
        text=True,
        check=True,
        cwd=script.parent,
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


DEEP_SUPERVISION = [f"model.deep_supervision={value}" for value in ("false", "true")]


@needs_bash
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("brainseg ", sorted(COMMANDS)),
        ("brainseg ev", ["evaluate"]),
        ("brainseg train model.de", [*DEEP_SUPERVISION, "model.depth="]),
        (
            "brainseg train model=",
            ["attention_unet", "custom", "monai", "reference", "smp", "unet", "unet_half"],
        ),
        ("brainseg train seed=1 scheduler=co", ["cosine"]),
        ("brainseg train scheduler.ep", ["scheduler.epochs="]),
        ("brainseg train force=", ["false", "true"]),
        ("brainseg train data.path=brain", ["brainseg.bash"]),
        ("brainseg search tria", ["trials="]),
        ("brainseg search model.dep", ["model.depth="]),
        ("brainseg prepare model", []),
        ("brainseg completion ", ["bash", "fish", "zsh"]),
    ],
)
def test_bash_offers(script: Path, line: str, offered: list[str]) -> None:
    assert complete(script, line) == offered


@needs_bash
def test_a_tab_in_an_interactive_bash(script: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(PS1="> ", TERM="dumb", INPUTRC="/dev/null")
        os.execv(str(BASH), [str(BASH), "--norc", "--noprofile", "-i"])
    try:
        os.write(terminal, f"source {script}; echo loa''ded\n".encode())
        read_until(terminal, "loaded")
        os.write(terminal, b"brainseg train model=att\tscheduler=one\tmodel.dep\t5")
        assert (
            "brainseg train model=attention_unet scheduler=one_cycle model.depth=5"
            in read_until(terminal, "depth=5")
        )
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def read_until(terminal: int, words: str) -> str:
    """What a terminal shows until these words are in it, at most ten seconds."""
    shown, end = "", time.monotonic() + 10
    while words not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode()
    return shown


def test_every_command_has_its_words() -> None:
    for command in TYPES:
        assert completion.list_words(command), command
    assert {
        "model.depth=",
        "split.folds=",
        "scheduler.epochs=",
        "loss=tversky",
        "sweep=devices",
    } <= set(completion.list_words("train"))
    assert set(completion.list_words("train")) < set(completion.list_words("search"))
    assert (
        "compdef _brainseg brainseg" in completion.zsh_script()
        and "optimizer=adamw" in completion.zsh_script()
    )
    assert "complete -c brainseg -n '__fish_seen_subcommand_from train'" in completion.fish_script()


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.run(["tcsh"]) == 2
    assert (
        capsys.readouterr().err
        == "error: shell=tcsh: must be one of bash, zsh, fish; for example brainseg completion bash\n"
    )
    assert completion.run(["--help"]) == 0
    assert 'eval "$(brainseg completion bash)"' in capsys.readouterr().out
