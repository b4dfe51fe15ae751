"""The verb that teaches a shell: completion."""

from typing import Literal

from difformer.cli.help import described, options

_BASH = """_difformer() {
  local word="${COMP_WORDS[COMP_CWORD]}" options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "VERBS" -- "$word"))
    return
  fi
  case "${COMP_WORDS[1]}" in
CASES
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    # Files, which the shell then completes itself.
    *) COMPREPLY=() ;;
  esac
}
complete -o default -F _difformer difformer
"""
# bashcompinit needs zsh's own completion to be there.
_ZSH = """(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Prints what has a shell complete verbs and options when Tab is pressed.

    Args:
        shell: bash and zsh read it with `eval "$(difformer completion bash)"` in ~/.bashrc or ~/.zshrc, fish with
            `difformer completion fish | source` in ~/.config/fish/config.fish.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise ValueError(f"shell must be bash, zsh or fish, got {shell!r}")
    verbs = {name: [f"--{key['name']}" for key in options(name)] + ["--help"] for name in described()["verbs"]}
    if shell == "fish":
        print(f"complete -c difformer -n __fish_use_subcommand -f -a '{' '.join(verbs)}'")
        for name, words in verbs.items():
            print(f"complete -c difformer -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'")
        return
    cases = "\n".join(f'    {name}) options="{" ".join(words)}" ;;' for name, words in verbs.items())
    script = _BASH.replace("VERBS", " ".join(verbs)).replace("CASES", cases)
    print(script if shell == "bash" else f"{_ZSH}{script}", end="")
