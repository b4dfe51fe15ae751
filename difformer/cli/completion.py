"""The verb that teaches a shell: completion."""

import re
import shlex
from typing import Any, Literal

from difformer.cli.help import described, options

# In bash, `=` is a word of its own; zsh leaves it in the word.
_BASH = """_difformer() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" start="" options="" values=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "VERBS" -- "$word"))
    return
  fi
  if [ "$word" = "=" ]; then
    word=""
  elif [ "$before" = "=" ]; then
    before="${COMP_WORDS[COMP_CWORD-2]}"
  fi
  case "$word" in
    --*=*) before="${word%%=*}" start="${word%%=*}=" word="${word#*=}" ;;
  esac
  case "${COMP_WORDS[1]} $before" in
VALUES
  esac
  case "${COMP_WORDS[1]}" in
OPTIONS
  esac
  case "$start$word" in
    --*=*) ;;
    -*) values="$options" ;;
  esac
  # Without a reply, the shell completes files itself.
  COMPREPLY=($(compgen -P "$start" -W "$values" -- "$word"))
}
complete -o default -F _difformer difformer
"""
# bashcompinit needs zsh's own completion to be there.
_ZSH = """(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Prints what has a shell complete verbs, options and values from a fixed list when Tab is pressed.

    Args:
        shell: bash and zsh read it with `eval "$(difformer completion bash)"` in ~/.bashrc or ~/.zshrc, fish with
            `difformer completion fish | source` in ~/.config/fish/config.fish.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise ValueError(f"shell must be bash, zsh or fish, got {shell!r}")
    verbs = {name: {key["name"]: key for key in options(name)} for name in described()["verbs"]}
    if shell == "fish":
        print(_fish(verbs))
        return
    asking: dict[str, list[str]] = {}
    for verb, keys in verbs.items():
        for key in keys.values():
            if values := choices(key):
                asking.setdefault(" ".join(values), []).append(f'"{verb} --{key["name"]}"')
    script = _BASH.replace("VERBS", " ".join(verbs))
    script = script.replace("VALUES", "\n".join(f'    {"|".join(who)}) values="{v}" ;;' for v, who in asking.items()))
    words = {verb: " ".join(f"--{name}" for name in [*keys, "help"]) for verb, keys in verbs.items()}
    script = script.replace("OPTIONS", "\n".join(f'    {verb}) options="{all_}" ;;' for verb, all_ in words.items()))
    print(script if shell == "bash" else f"{_ZSH}{script}", end="")


def choices(key: dict[str, Any]) -> list[str]:
    """The values that an option may have, or the names that it may hold beside files and things of one's own; empty
    where it has other values.

    Args:
        key: from `options`.
    """
    # Switches and sections have no values, and those of a mapping cannot be told from its keys.
    named: list[str] = [] if key["kind"] in ("", "KEY: VALUE") else described()["names"].get(key["name"], [])
    return named or [value for listed in re.findall(r"{([^}]*)}", key["kind"]) for value in listed.split(",")]


def _fish(verbs: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [f"complete -c difformer -n __fish_use_subcommand -f -a {shlex.quote(' '.join(verbs))}"]
    for verb, keys in verbs.items():
        begin = f"complete -c difformer -n '__fish_seen_subcommand_from {verb}'"
        lines.append(f"{begin} -l help")
        for name, key in keys.items():
            values = choices(key)
            # Names may stand beside files; of a list in braces, only its words are possible.
            needs = "" if not key["kind"] else " -r" if name in described()["names"] or not values else " -x"
            lines.append(f"{begin} -l {name}{needs}" + (f" -a {shlex.quote(' '.join(values))}" if values else ""))
    return "\n".join(lines)
