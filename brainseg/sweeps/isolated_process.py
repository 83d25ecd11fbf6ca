"""A job in a process of its own: whatever kills that process, kills nothing else.

The worker of a parallel launcher only waits for it. joblib's pool ends with any of its workers, and takes the jobs of the
others along; a job that runs out of memory must not do that. Only JSON goes to and fro.

    python -m brainseg.sweeps.isolated_process TARGET DESCRIPTOR < arguments       what `call_in_subprocess` starts
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from brainseg.config import TrainConfig, restore

PACKAGE = Path(__file__).resolve().parents[1]


class SubprocessDied(RuntimeError):
    """The process ended without a result, or with an exception instead."""


def call_in_subprocess(
    target: str,
    config: TrainConfig,
    *further: Any,
    output: Path | None = None,
    started: Callable[[int], None] = lambda pid: None,
) -> Any:
    """What the function `target` ("package.module:name") returns for `config` and `further`, called in a new process.

    `further` and the result are what JSON can say. `started` is told the pid; what the process prints goes to the file `output`,
    or where this one's goes. When this process ends, however it ends, the other gets SIGTERM. Raises Died.
    """
    receiver, sender = os.pipe()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH")))
        )
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    with open(output or os.devnull, "ab") as file:
        printed: dict[str, Any] = {"stdout": file, "stderr": file} if output else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "brainseg.sweeps.isolated_process", target, str(sender)],
            stdin=subprocess.PIPE,
            pass_fds=(sender,),
            env=environment,
            **printed,
        )
    os.close(sender)
    started(process.pid)
    assert (
        process.stdin is not None
    )  # open until the end: that it closes is how the process learns that this one is gone
    with os.fdopen(receiver) as pipe:
        with suppress(BrokenPipeError):  # it may have died already
            process.stdin.write(json.dumps([asdict(config), *further]).encode() + b"\n")
            process.stdin.flush()
        said = pipe.read()
        code = process.wait()
    with suppress(BrokenPipeError):
        process.stdin.close()
    result = json.loads(said) if said.endswith("\n") else {"died": _how(code)}
    if "died" in result:
        raise SubprocessDied(result["died"])
    return result["result"]


def _how(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was killed by {signal.Signals(-code).name}" + (
        ", perhaps out of memory" if code == -signal.SIGKILL else ""
    )


def main() -> None:
    """What the new process does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the launcher's workers ignore it
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # a cluster's warning that the time is up
        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    target, descriptor = sys.argv[1:]
    config, *further = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = target.partition(":")
    try:
        answer = {"result": getattr(import_module(module), name)(restore(config), *further)}
    except Exception as error:  # whatever it is, it is the caller's to say
        answer = {"died": f"{type(error).__name__}: {error}".splitlines()[0]}
    with os.fdopen(int(descriptor), "w") as pipe:
        pipe.write(json.dumps(answer) + "\n")


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
