"""``nola-edge demo --real``: merge into a real model, ask it, and say what came of it."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from nola_edge.cli import output as ui
from nola_edge.cli.demo_text import filled, labelled
from nola_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nola_edge.demo.commands import Command
    from nola_edge.demo.real import Reply
    from nola_edge.files.atomic import AtomicOutput

KEPT_FILES = ("merged.gguf", "commands.nola")
_SHOWN = 3
_WHEN = ("before", "shown", "after")
_ASK = "Set the radiator in the library to 21 degrees at seven in the morning."


def run_real(
    output: AtomicOutput | None, ask: str | None, say: Callable[[str], None], quiet: bool
) -> dict[str, Any]:
    """Demonstrate the shipped adapter on a real model.

    Parameters
    ----------
    output : AtomicOutput or None
        Folder to keep the merged model and the adapter in.
    ask : str or None
        A prompt instead of the held-out ones.
    say : callable
        Told what to print.
    quiet : bool
        Show no progress.

    Returns
    -------
    dict
        What was found, for JSON.

    Raises
    ------
    NolaEdgeError
        If the model, or a library to run it, is not installed; nothing was written then.
    """
    from nola_edge.demo import real
    from nola_edge.demo.scratch import scratch_folder

    base, library = real.find_model()
    with contextlib.ExitStack() as stack:
        if output is None:
            folder = stack.enter_context(scratch_folder(real.MERGED_BYTES))
        else:
            folder = output.path
        say(_introduction(base))
        merged = folder / KEPT_FILES[0]
        found = {"model": str(base), "library": library, **_merge(base, merged, say, quiet)}
        found |= _ask_all(library, base, merged, ask, say, quiet)
    if output is not None:
        _keep(output)
    return found


def _introduction(base: Path) -> str:
    from nola_edge.demo.real import ADAPTER

    return filled(
        f"SmolLM2-135M-Instruct ({ui.human_bytes(base.stat().st_size)}) is a real chat model. An "
        f"adapter of {ui.human_bytes(ADAPTER.stat().st_size)} teaches it one thing: a command to "
        "a house becomes JSON that a program can obey."
    )


def _merge(base: Path, merged: Path, say: Callable[[str], None], quiet: bool) -> dict[str, Any]:
    from nola_edge.demo.real import ADAPTER, MERGED_TYPE
    from nola_edge.gguf import merge_gguf

    options = f"--outtype {MERGED_TYPE.lower()}"
    say(f"\n... merging: nola-edge merge base.gguf {ADAPTER.name} {options}")
    with ui.Progress(base.stat().st_size, "merging", quiet) as progress:
        report = merge_gguf(base, ADAPTER, merged, outtype=MERGED_TYPE, progress=progress)
    say(
        f"    {report.merged} tensors in {report.seconds:.1f} s; as {MERGED_TYPE}: in the base's "
        "own 4 bits\n    it gives a few more wrong answers"
    )
    return {
        "adapter_bytes": ADAPTER.stat().st_size,
        "merged_bytes": report.nbytes,
        "merge_seconds": report.seconds,
    }


def _ask_all(
    library: str, base: Path, merged: Path, ask: str | None,
    say: Callable[[str], None], quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    from nola_edge.demo.real import held_out_commands, replies

    wanted = held_out_commands() if ask is None else []
    prompts = [command.sentence for command in wanted] if ask is None else [ask]
    say(f"... asking the base and the merged model, with {library}")
    begin = time.perf_counter()
    answered = _shown(replies(library, base, merged, prompts), len(prompts), say, quiet)
    seconds = time.perf_counter() - begin
    right = {when: _count_right(wanted, answered, when) for when in _WHEN} if wanted else {}
    if wanted:
        say(_right_text(right, len(wanted), seconds))
    meant: list[str | None] = [command.answer for command in wanted] or [None]
    answers = [
        {**asdict(reply), "wanted": answer} for reply, answer in zip(answered, meant, strict=True)
    ]
    return {"answer_seconds": seconds, "right": right, "answers": answers}


def _count_right(wanted: Sequence[Command], answered: Sequence[Reply], when: str) -> int:
    from nola_edge.demo.commands import is_right

    pairs = zip(wanted, answered, strict=True)
    return sum(is_right(command.action, getattr(reply, when)) for command, reply in pairs)


def _shown(
    answered: Iterator[Reply], count: int, say: Callable[[str], None], quiet: bool
) -> list[Reply]:
    """Return all replies, having shown some of them as they came."""
    found = []
    for reply in islice(answered, _SHOWN):
        found.append(reply)
        say("\n" + "\n".join(_reply_lines(reply)))
    with ui.Progress(count - len(found), "asking", quiet, unit="prompt") as progress:
        for reply in answered:
            found.append(reply)
            progress(1)
    return found


def _reply_lines(reply: Reply) -> Sequence[str]:
    return [labelled(name, getattr(reply, name)) for name in ("prompt", "before", "after")]


def _right_text(right: dict[str, int], count: int, seconds: float) -> str:
    from nola_edge.demo.real import EXAMPLES

    rows = {
        "the base": right["before"],
        f"the base, shown {EXAMPLES} examples first": right["shown"],
        "with the adapter merged": right["after"],
    }
    lines = [
        f"\nexactly the JSON that is meant, in {count} prompts about devices in rooms where no "
        "command\nhad them in training:"
    ]
    lines += [f"  {what:36} {number:>3}" for what, number in rows.items()]
    return "\n".join([*lines, f"asked in {seconds:.0f} s"])


def _keep(output: AtomicOutput) -> None:
    import shutil

    from nola_edge.demo.real import ADAPTER

    with output.file(KEPT_FILES[0]):  # written already; now it is looked for
        pass
    with output.file(KEPT_FILES[1]) as path:
        shutil.copyfile(ADAPTER, path)


def next_steps(kept: str | None, model: str) -> str:
    """Return what to do after the demonstration."""
    if kept is None:
        return (
            f'\nto try it yourself:\n  nola-edge demo --real --ask \\\n    "{_ASK}"'
            "\n  nola-edge demo --real --keep ./real-demo"
        )
    return "\n".join(
        [
            f"\nkept in {printable(kept, 240)}: {', '.join(KEPT_FILES)}",
            "\nto go on:",
            f"  cd {printable(shlex.quote(kept), 240)}",
            "  nola-edge inspect commands.nola",
            f"  nola-edge verify merged.gguf {printable(shlex.quote(model), 400)} commands.nola",
        ]
    )
