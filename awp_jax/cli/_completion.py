"""``awp-jax completion``."""

import re
from collections.abc import Sequence

from awp_jax import checks, cli
from awp_jax.cli._command import Command, Help
from awp_jax.cli._errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str]) -> int:
    """Prints the script; returns the exit status."""
    command = Command(
        "completion",
        "Prints a script by which a shell completes commands, flags, and files after --NAME=.\n\n"
        '  bash, zsh  eval "$(awp-jax completion bash)"     in ~/.bashrc (zsh: ~/.zshrc)\n'
        "  fish       awp-jax completion fish > ~/.config/fish/completions/awp-jax.fish",
        argument="SHELL",
    )
    command.parse(argv)
    if not command.given:
        raise UsageError(f"SHELL is missing: give one of {', '.join(SHELLS)}.")
    shell = checks.choice(command.given, SHELLS, "shell")
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]())
    return 0


def _flags() -> dict[str, list[str]]:
    """By command its flags, ``--workdir=`` or ``--json``, as its help shows them."""
    found = {}
    for name in cli.COMMANDS:
        try:
            cli.main_of(name)(["--help"])
        except Help as text:
            # Of --config and what it takes only the name: --config.KEY=VALUE is no flag to choose.
            found[name] = re.findall(r"^  (--[a-z]\w*(?:=|\b))(?!\.)", str(text), flags=re.M)
    return found


def _bash() -> str:
    cases = "\n".join(
        f'        {name}) words="{" ".join(flags)} --help" ;;' for name, flags in _flags().items()
    )
    return f"""_awp_jax() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(cli.COMMANDS)}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    # "=" ends a word of readline: what comes after it is a file.
    case "$word" in -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;; *) COMPREPLY=() ;; esac
    case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2> /dev/null ;; esac
}}
complete -o default -F _awp_jax awp-jax"""


def _zsh() -> str:
    return "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + _bash()


def _fish() -> str:
    lines = ["complete -c awp-jax -f"]
    for name, text in cli.COMMANDS.items():
        words = text.replace("'", "\\'")
        lines.append(f"complete -c awp-jax -n __fish_use_subcommand -a {name} -d '{words}'")
    for name, flags in _flags().items():
        for flag in flags:
            takes = " -r -F" if flag.endswith("=") else ""
            long = flag.removeprefix("--").removesuffix("=")
            lines.append(
                f"complete -c awp-jax -n '__fish_seen_subcommand_from {name}' -l {long}{takes}"
            )
    return "\n".join(lines)
