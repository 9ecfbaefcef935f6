"""The script that runs the README's blocks finds what is wrong in them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.packaging.test_cpp_library import ROOT

SCRIPT = ROOT / "scripts" / "readme_blocks.py"
GOOD = """\
```console
$ mkdir demo && cd demo
$ printf 'one\\ntwo\\n1.5 s\\n'
one
…
9.5 s
```

```python
import pathlib
pathlib.Path("made").touch()
```

<!-- not run: there is no such program -->
```sh
no-such-program
```

```sh
test -e ../demo/made
```
"""


def run(tmp_path, text: str, *options: str):
    file = tmp_path / "README.md"
    file.write_text(text)
    command = [sys.executable, SCRIPT, file, *options]
    return subprocess.run(command, capture_output=True, text=True), file


def test_blocks_that_hold(tmp_path):
    done, file = run(tmp_path, GOOD, "--write")
    assert done.returncode == 0, done.stdout
    assert file.read_text() == GOOD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("one\n…", "One\n…"),
        ("…\n9.5 s", "9.5 s"),
        ("9.5 s", "9.5 m"),
        ("touch()", "mkdir()\nraise SystemExit(3)"),
        ("test -e", "test -d"),
        ("not run", "here too"),
    ],
)
def test_a_block_that_does_not_hold(tmp_path, old, new):
    done, file = run(tmp_path, GOOD.replace(old, new, 1))
    assert done.returncode == 1
    assert re.search(r"^line \d+: (status|\$) ", done.stdout, re.MULTILINE)
    assert file.read_text() == GOOD.replace(old, new, 1)


def test_what_is_printed_now_is_written(tmp_path):
    done, file = run(tmp_path, GOOD.replace("one\n…\n9.5 s", "three"), "--write")
    assert done.returncode == 1
    assert "$ printf 'one\\ntwo\\n1.5 s\\n'\none\ntwo\n1.5 s\n```" in file.read_text()
    assert run(tmp_path, file.read_text())[0].returncode == 0
