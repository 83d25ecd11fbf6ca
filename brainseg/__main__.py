"""The command `brainseg COMMAND key=value ...`.

It does the same as `python -m brainseg.COMMAND key=value ...`.
"""

import difflib
import sys
from importlib import import_module

from brainseg.cli.commands import COMMANDS, module_of
from brainseg.core.signals import exit_on_signals


def main() -> None:
    """Run the command that the first argument names, or list the commands."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        command_list = "\n".join(
            f"  {command:10s} {meaning}" for command, meaning in COMMANDS.items()
        )
        if name not in ("", "-h", "--help"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
            print(f"error: {name}: no such command; {remedy}", file=sys.stderr)
            sys.exit(2)
        print(
            f"usage: brainseg COMMAND key=value ...\n\n{command_list}\n\n"
            "brainseg COMMAND --help lists its settings."
        )
        sys.exit(0)
    # The command reads sys.argv as if it were started with `python -m brainseg.COMMAND`.
    del sys.argv[1]
    # The imports of a command take seconds, and Ctrl-C must end them without a traceback.
    exit_on_signals()
    import_module(module_of(name)).main()


if __name__ == "__main__":
    main()
