"""``nola-edge hash``."""

from __future__ import annotations

import contextlib

import click

from nola_edge.cli import output as ui
from nola_edge.cli.path_types import PATH
from nola_edge.cli.summary import bytes_at, show, summary_options


@click.command("hash", epilog="Example: nola-edge merge base adapter -o merged --expect $HASH")
@click.argument("path", type=PATH)
@ui.threads_option
@summary_options
def command(path: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Print the SHA-256 of PATH, a file or a folder.

    Merging gives the same bits everywhere, so the hash of a result can be published with an
    adapter: nola-edge merge --expect HASH refuses any other result before it is in place.

    Of a file it is what sha256sum prints. Of a folder it is the SHA-256 of what sha256sum prints of
    its files, sorted by their paths: cd PATH && find -L . -type f -print0 | LC_ALL=C sort -z |
    xargs -0 sha256sum | sha256sum
    """
    from nola_edge.files.content_hash import content_hash

    total = 0
    with contextlib.suppress(OSError):  # said below
        total = bytes_at(path)
    with ui.Progress(total, "hashing", quiet or as_json) as progress:
        found = content_hash(path, num_threads=threads, progress=progress)
    show(
        {"path": path, "sha256": found.sha256, "bytes": found.nbytes, "files": found.files},
        found.sha256,
        as_json=as_json,
        quiet=quiet,
    )
