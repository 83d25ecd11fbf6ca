"""`brainseg <command> key=value ...`, the same as `python -m brainseg.<command> key=value ...`."""

import difflib
import sys
from importlib import import_module

from brainseg.cli.commands import COMMANDS
from brainseg.core.signals import exit_on_signals


def main() -> None:
    """Hand over to the command named first; without one, list them."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        listed = "\n".join(f"  {command:10s} {meaning}" for command, meaning in COMMANDS.items())
        if name not in ("", "-h", "--help"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
            print(f"error: {name}: no such command; {meant}", file=sys.stderr)
            sys.exit(2)
        print(
            f"usage: brainseg COMMAND key=value ...\n\n{listed}\n\nbrainseg COMMAND --help lists its settings."
        )
        sys.exit(0)
    del sys.argv[1]
    exit_on_signals()
    import_module(f"brainseg.{name}").main()


if __name__ == "__main__":
    main()
