"""Print a script with which a shell completes `brainseg` commands, settings and choices on Tab.

    eval "$(brainseg completion bash)"        # into ~/.bashrc
    source <(brainseg completion zsh)         # into ~/.zshrc, behind compinit
    brainseg completion fish | source         # into ~/.config/fish/config.fish

The script contains all words, so a Tab starts no Python, composes no config and reads no file.
Print the script again after an update of brainseg.
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
    """Run `python -m brainseg.completion` or `brainseg completion`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Print the script for the shell that the arguments name, and return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(help_text.command_description("completion"))
        return 0
    try:
        name = " ".join(arguments)
        check(
            name in SHELLS,
            "shell",
            name,
            f"must be one of {', '.join(SHELLS)}",
            "for example brainseg completion bash",
        )
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print({"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[name]())
    return 0


def list_words(command: str) -> list[str]:
    """Return the words that may follow a command, sorted: `SETTING=` and `GROUP=CHOICE`."""
    if command not in TYPES:
        return []
    choice_groups = help_text.default_choices(command)
    completions = {f"{group}={choice}" for group in choice_groups for choice in list_choices(group)}
    completions |= {
        word for setting in list_settings(TYPES[command]) for word in _setting_words(setting)
    }
    # A search passes every setting of train on to its trials.
    return sorted(completions | (set(list_words("train")) if command == "search" else set()))


def list_choices(group: str) -> list[str]:
    """Return the names of a config group's YAML files, sorted."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def list_settings(schema: type, prefix: str = "") -> Iterator[help_text.Setting]:
    """Yield all settings of a dataclass and of its groups, including those of every choice."""
    yield from help_text.list_settings(schema, prefix)
    for name, (group, _) in help_text.list_groups(schema).items():
        # Several choices may share a dataclass.
        for choice_schema in dict.fromkeys([group, *CHOICES.get(name, {}).values()]):
            yield from list_settings(choice_schema, f"{prefix}{name}.")


def _setting_words(setting: help_text.Setting) -> list[str]:
    """Return the words that complete a setting: with both values of a boolean, else with `=`."""
    return (
        [f"{setting.name}=true", f"{setting.name}=false"]
        if setting.kind == "true/false"
        else [f"{setting.name}="]
    )


def bash_script() -> str:
    """Return the completion script for bash.

    Bash splits words at `=`. The script therefore takes the word from the line, and removes the
    part up to `=` from the replies.
    """
    cases = "\n".join(
        f'        {command}) words="{" ".join(list_words(command))}" ;;'
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
    if [[ "$current" == *=* &&
        ( ${{#COMPREPLY[@]}} -eq 0 || "${{COMPREPLY[*]}}" == "$current" ) ]]; then
        local IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "${{current#*=}}"))
    elif [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${{COMPREPLY[@]#"${{current%%=*}}="}}")
    fi
    # The value follows after `=` without a space.
    if [[ "${{#COMPREPLY[@]}}" -eq 1 && "${{COMPREPLY[0]}}" == *= ]]; then compopt -o nospace; fi
}}
complete -F _brainseg brainseg"""


def zsh_script() -> str:
    """Return the completion script for zsh, which does not split words at `=`."""
    cases = "\n".join(
        f"        {command}) compadd -S '' -- {' '.join(list_words(command))} ;;"
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


def fish_script() -> str:
    """Return the completion script for fish, which shows each command with its meaning."""
    command_line = "complete -c brainseg -n __fish_use_subcommand -f -a {} -d {}"
    lines = [command_line.format(command, _quote(meaning)) for command, meaning in COMMANDS.items()]
    word_line = "complete -c brainseg -n '__fish_seen_subcommand_from {}' -a '{}'"
    lines += [
        word_line.format(command, " ".join(list_words(command)))
        for command in COMMANDS
        if command in TYPES
    ]
    return "\n".join([*lines, word_line.format("completion", " ".join(SHELLS))])


def _quote(text: str) -> str:
    """Return a text in single quotes, as fish reads it."""
    return "'" + text.replace("'", "\\'") + "'"


if __name__ == "__main__":
    main()
