"""Print what lets a shell complete commands, settings and choices of `brainseg` with the Tab key.

    eval "$(brainseg completion bash)"        # into ~/.bashrc
    source <(brainseg completion zsh)         # into ~/.zshrc, behind compinit
    brainseg completion fish | source         # into ~/.config/fish/config.fish

All words are in what is printed: a Tab starts no Python, composes nothing and reads no file. Print it again after an update.
"""

import sys
from collections.abc import Iterator

from brainseg.cli import help_text
from brainseg.cli.commands import COMMANDS
from brainseg.config import CHOICES, TYPES
from brainseg.config.compose import CONFIGS
from brainseg.core.errors import RequestError, check

SHELLS = ("bash", "zsh", "fish")


def main() -> None:
    """Entry point of `python -m brainseg.completion` and `brainseg completion`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Print the script for a shell; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(help_text.purpose("completion"))
        return 0
    try:
        name = " ".join(arguments)
        check(
            name in SHELLS,
            "shell",
            name,
            f"must be one of {', '.join(SHELLS)}",
            "as brainseg completion bash",
        )
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print({"bash": bash, "zsh": zsh, "fish": fish}[name]())
    return 0


def words(command: str) -> list[str]:
    """What may stand behind a command, sorted: settings that end in `=`, and `GROUP=CHOICE`; of search also those of train."""
    if command not in TYPES:
        return []
    chosen = help_text.choices_of_command(command)
    found = {f"{group}={choice}" for group in chosen for choice in choices(group)}
    found |= {word for setting in settings(TYPES[command]) for word in _typed(setting)}
    return sorted(found | (set(words("train")) if command == "search" else set()))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def settings(kind: type, prefix: str = "") -> Iterator[help_text.Setting]:
    """Every setting below a dataclass, those of a group's further choices included."""
    yield from help_text.settings(kind, prefix)
    for name, (group, _) in help_text.groups(kind).items():
        for one in dict.fromkeys([group, *CHOICES.get(name, {}).values()]):
            yield from settings(one, f"{prefix}{name}.")


def _typed(setting: help_text.Setting) -> list[str]:
    return (
        [f"{setting.name}=true", f"{setting.name}=false"]
        if setting.kind == "true/false"
        else [f"{setting.name}="]
    )


def bash() -> str:
    """Bash splits words at `=`, so the word is taken from the line, and what stands before its `=` off the replies."""
    cases = "\n".join(
        f'        {command}) words="{" ".join(words(command))}" ;;'
        for command in COMMANDS
        if command in TYPES
    )
    return f"""_brainseg() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" words=""
    local current="${{line##*[[:space:]]}}"
    case "${{COMP_WORDS[1]}}" in
{cases}
        completion) words="{" ".join(SHELLS)}" ;;
        sync) local IFS=$'\\n'; COMPREPLY=($(compgen -d -- "$current")); return ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then words="{" ".join(COMMANDS)}"; fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ "$current" == *=* && ( ${{#COMPREPLY[@]}} -eq 0 || "${{COMPREPLY[*]}}" == "$current" ) ]]; then
        local IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "${{current#*=}}"))
    elif [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${{COMPREPLY[@]#"${{current%%=*}}="}}")
    fi
    if [[ "${{#COMPREPLY[@]}}" -eq 1 && "${{COMPREPLY[0]}}" == *= ]]; then compopt -o nospace; fi  # the value follows
}}
complete -F _brainseg brainseg"""


def zsh() -> str:
    """Zsh takes the word as it is."""
    cases = "\n".join(
        f"        {command}) compadd -S '' -- {' '.join(words(command))} ;;"
        for command in COMMANDS
        if command in TYPES
    )
    return f"""_brainseg() {{
    if (( CURRENT == 2 )); then compadd -- {" ".join(COMMANDS)}; return; fi
    case "$words[2]" in
{cases}
        completion) compadd -- {" ".join(SHELLS)} ;;
    esac
    if [[ "$PREFIX" == *=* ]]; then compset -P '*='; _files; fi
}}
compdef _brainseg brainseg"""


def fish() -> str:
    """Fish shows the meaning of a command beside it."""
    first = "complete -c brainseg -n __fish_use_subcommand -f -a {} -d {}"
    lines = [first.format(command, _quoted(meaning)) for command, meaning in COMMANDS.items()]
    behind = "complete -c brainseg -n '__fish_seen_subcommand_from {}' -a '{}'"
    lines += [
        behind.format(command, " ".join(words(command))) for command in COMMANDS if command in TYPES
    ]
    return "\n".join([*lines, behind.format("completion", " ".join(SHELLS))])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


if __name__ == "__main__":
    main()
