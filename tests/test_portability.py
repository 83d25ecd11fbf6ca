"""What Windows lacks is hidden from every process, and the commands work all the same.

No such machine is at hand. The names below are those that Python's documentation marks as not
available on Windows and that a part of the package uses, or is likely to use one day.
"""

import os
import subprocess
import sys
from pathlib import Path

# Python imports this module before anything else, also in the processes that the commands start.
# Other packages keep what the real names promise them.
SITECUSTOMIZE = """
import builtins, ctypes, fcntl, os, signal, sys, types

import psutil

ABSENT = ("resource", "fcntl", "pwd", "grp", "termios", "readline")
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGPIPE", "SIGCHLD")
FUNCTIONS = ("O_DIRECTORY", "O_NOFOLLOW", "fork", "getuid", "geteuid", "getgid", "killpg", "uname",
             "sched_getaffinity", "mkfifo", "statvfs", "nice", "setsid", "getpgid", "register_at_fork")


class Windows(types.ModuleType):
    def __init__(self, module, hidden, **replaced):
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _hidden=hidden, **replaced)

    def __getattr__(self, name):
        if name in self._hidden:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)

    def __setattr__(self, name, value):
        setattr(self._module, name, value)


def open_file(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os.open(path, flags, *rest, **options)


def sync_writable(descriptor):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    os.fsync(descriptor)


def kill_process(pid, number):
    # On Windows the number 0 is that of Ctrl-C.
    assert number != 0, "would interrupt the process"
    os.kill(pid, number)


def load_library(name, *rest, **options):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    return ctypes.CDLL(name, *rest, **options)


class Process(psutil.Process):
    def memory_info(self):
        return types.SimpleNamespace(peak_wset=7_000_000_000)


REPLACED = {
    "sys": Windows(sys, (), platform="win32"),
    "os": Windows(os, FUNCTIONS, open=open_file, fsync=sync_writable, kill=kill_process),
    "signal": Windows(signal, SIGNALS),
    "ctypes": Windows(ctypes, (), CDLL=load_library),
    "psutil": Windows(psutil, (), Process=Process),
}
import_module = builtins.__import__


def import_present(name, globals=None, *rest, **options):
    if (globals or {}).get("__name__", "").split(".")[0] != "brainseg":
        return import_module(name, globals, *rest, **options)
    if name in ABSENT:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return REPLACED.get(name) or import_module(name, globals, *rest, **options)


builtins.__import__ = import_present
"""

COMMANDS = """
import sys
from pathlib import Path

TINY = ["data.phantom.patients=7", "data.phantom.slices=4", "data.phantom.size=32"]


def run(command, *arguments):
    sys.argv = [command, *arguments]
    try:
        __import__(f"brainseg.{command}", fromlist=["main"]).main()
    except SystemExit as end:
        assert not end.code, (command, end.code)


NETWORK = ["model.depth=2", "model.width=4", "epochs=1", "device=cpu"]
if __name__ == "__main__":
    run("train", *TINY, *NETWORK, "output=run")
    run("train", *TINY, *NETWORK, "output=other", "tracking=none", "dry_run=measure")
    run("evaluate", "checkpoint=run", *TINY, "output=scores", "device=cpu")
    (source,) = Path("data").glob("phantom-*/kaggle_3m")
    run("predict", "checkpoint=run", f"input={source}", "output=masks", "device=cpu")
    run("prepare", f"source={source}", "output=again.h5", "workers=2")
    from brainseg import segment

    print("segmented", segment("run", str(min(source.iterdir()))).mask.shape)
"""


def test_the_commands_work_without_what_windows_lacks(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "commands.py").write_text(COMMANDS)
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(tmp_path / "hidden"), root, os.environ.get("PYTHONPATH", "")]
        ),
    }
    ended = subprocess.run(
        [sys.executable, "commands.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "segmented" in ended.stdout
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "scores" / "summary.json").is_file()
    assert (tmp_path / "again.h5").is_file() and list((tmp_path / "masks").iterdir())
    assert "7.0 GB" in ended.stdout, "dry_run=measure in a process of its own"
