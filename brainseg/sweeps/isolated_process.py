"""A function call in a new process, so that a crash of the job ends only the job.

A worker of a parallel launcher starts this process and waits for it. joblib's pool ends with any of
its workers and takes all other jobs with it, which a job that runs out of memory must not cause.
Arguments and result are exchanged as JSON. `call_in_subprocess` starts

    python -m brainseg.sweeps.isolated_process TARGET ANSWER_FILE [--in-queue] < arguments
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from brainseg.config import TrainConfig, restore_config
from brainseg.core.files import write_text
from brainseg.core.output import print_log
from brainseg.sweeps.queue_signals import QUEUE_SIGNALS, QueueSignals

PACKAGE = Path(__file__).resolve().parents[1]


class SubprocessFailed(RuntimeError):
    """The new process ended without a result, or the function raised an exception."""


def call_in_subprocess(
    target: str,
    config: TrainConfig,
    *arguments: Any,
    output: Path | None = None,
    on_start: Callable[[int], None] = lambda pid: None,
    signals: QueueSignals | None = None,
) -> Any:
    """Call the function `target` in a new process and return its result.

    The new process receives SIGTERM when this process ends, however it ends. Raises SubprocessDied.

    Args:
        target: The function, as "package.module:name".
        config: The first argument of the function.
        arguments: Further arguments. They and the result must be representable in JSON.
        output: File to which the new process prints. None leaves stdout and stderr shared.
        on_start: Function that is called with the pid of the new process.
        signals: The signals of a cluster's queue, which end the new process through its stdin.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH")))
        )
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    # A file passes the answer, because Windows passes no pipe to a new process by its number.
    with tempfile.TemporaryDirectory(prefix="brainseg-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "brainseg.sweeps.isolated_process", target, str(answer)]
        with open(output or os.devnull, "ab") as file:
            streams: dict[str, Any] = {"stdout": file, "stderr": file} if output else {}
            process = subprocess.Popen(
                [*command, *(["--in-queue"] if signals else [])],
                stdin=subprocess.PIPE,
                # Ctrl-C reaches only the command, which passes one signal on. The new process would
                # take a second one for the wish to end at once.
                start_new_session=True,
                env=environment,
                **streams,
            )
        on_start(process.pid)
        assert process.stdin is not None
        # A process that has crashed already reads no arguments.
        with suppress(OSError):
            process.stdin.write(json.dumps([asdict(config), *arguments]).encode() + b"\n")
            process.stdin.flush()
        if signals is not None:
            signals.attach(process)
        code = process.wait()
        # stdin stays open until here. Its end tells the new process that this process is gone.
        with suppress(OSError):
            process.stdin.close()
        result = (
            json.loads(answer.read_text()) if answer.exists() else {"error": _describe_exit(code)}
        )
    if "error" in result:
        raise SubprocessFailed(result["error"])
    return result["result"]


def _describe_exit(code: int) -> str:
    """Return how a process ended, from the return code of `Popen`: an exit code, or -signal."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    # The kernel's out-of-memory killer uses SIGKILL.
    return f"its process was killed by {signal.Signals(-code).name}" + (
        ", perhaps out of memory" if code == -signal.SIGKILL else ""
    )


def main() -> None:
    """Read the arguments from stdin, call the target, and write its result or error to the file."""
    target, answer_file, *flags = sys.argv[1:]
    ending_signal = _handle_signals("--in-queue" in flags)
    # The output of a job goes to a file of its own, which may be as long as it likes.
    print_log(logging.DEBUG)
    config, *arguments = json.loads(sys.stdin.buffer.readline())
    module, _, name = target.partition(":")
    try:
        function = getattr(import_module(module), name)
        # The parent is watched from here on. Within the imports a library could swallow the
        # exception that the signal raises, and this process would stay.
        threading.Thread(target=_end_with_parent, args=(ending_signal,), daemon=True).start()
        answer = {"result": function(restore_config(config), *arguments)}
    # Every exception is passed to the caller, which reports it.
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    write_text(answer_file, json.dumps(answer))


def _handle_signals(is_in_queue: bool) -> int:
    """Set the handlers of this process, and return the signal by which it ends itself."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    if is_in_queue:
        # The parent process passes on the first signal of the queue. See `queue_signals`.
        for number in QUEUE_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGINT, end)
        return signal.SIGINT
    # The launcher's workers ignore SIGINT, and a new process inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, end)
    # A queue sends SIGUSR1 or SIGUSR2 shortly before the job's time is up. Windows has neither.
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return signal.SIGTERM


def _end_with_parent(ending_signal: int) -> None:
    """Wait until the parent process closes stdin, then send the signal to this process."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), ending_signal)


if __name__ == "__main__":
    main()
