"""``nola-edge completion``, and what bash needs beyond click's own completion."""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

PROGRAM = "nola-edge"

#: With it in the environment, the program answers a shell's question and does nothing else.
VARIABLE = "_NOLA_EDGE_COMPLETE"

_EPILOG = """\
The script asks nola-edge itself, so it always matches the installed version. To have it in every
new shell, run once:

\b
bash  nola-edge completion bash > ~/.nola-edge.bash
      echo '. ~/.nola-edge.bash' >> ~/.bashrc
zsh   nola-edge completion zsh > ~/.nola-edge.zsh
      echo '. ~/.nola-edge.zsh' >> ~/.zshrc
fish  mkdir -p ~/.config/fish/completions
      cd ~/.config/fish/completions
      nola-edge completion fish > nola-edge.fish

In zsh, .zshrc must run compinit before that line. If nothing does so yet, add

\b
      autoload -Uz compinit && compinit

Example: source <(nola-edge completion bash)
"""


@add_completion_class
class Bash(BashComplete):
    """Bash's completion; the ``=`` of ``--base=FOLDER`` is a word of its own there."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to complete, and that."""
        words, incomplete = super().get_completion_args()
        return [word for word in words if word != "="], incomplete


class _OneWord(ShellComplete):
    """Completion for shells that take ``--base=FOLDER`` for one word, and replace all of it."""

    _option = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        words, incomplete = super().get_completion_args()
        option, equals, _ = incomplete.partition("=")
        if option.startswith("--"):
            self._option = (option + equals) * len(equals)
        return words, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        item.value = self._option + item.value
        return super().format_completion(item)


@add_completion_class
class Fish(_OneWord, FishComplete):
    """Fish's completion."""


@add_completion_class
class Zsh(_OneWord, ZshComplete):
    """Zsh's completion; where zsh looks for paths, it must be told what is not part of the path."""

    def source(self) -> str:
        """Return the script."""
        function = f"{self.func_name}_value"
        return f"""{super().source()}
{function}() {{
    compset -P '--*='
    {self.func_name}
}}
compdef {function} {self.prog_name}
"""


def commands(names: dict[str, str], incomplete: str) -> list[CompletionItem]:
    """Return the commands that begin so, with what each does; none of them is imported."""
    return [
        CompletionItem(name, help=text)
        for name, text in names.items()
        if name.startswith(incomplete)
    ]


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that has SHELL complete commands, options and paths."""
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(click.Group(), {}, PROGRAM, VARIABLE).source())
