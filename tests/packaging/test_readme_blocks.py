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
print("loss 3.15 -> 0.80")
```

It prints `loss 3.16 -> 0.83`, and more.

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
        ("test -e", "false\ntest -e"),
        ("test -e", "false | true\ntest -e"),
        ("0.80", "0.95"),
        ("0.80", "0.80 nats"),
        ('print("loss 3.15 -> 0.80")', ""),
        ("not run", "here too"),
    ],
)
def test_a_block_that_does_not_hold(tmp_path, old, new):
    done, file = run(tmp_path, GOOD.replace(old, new, 1))
    assert done.returncode == 1
    assert re.search(r"^line \d+: (status|prints|\$) ", done.stdout, re.MULTILINE)
    assert file.read_text() == GOOD.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```sh\ntrue\n", "line 1: the block does not end"),
        ("```bash\nexit 1\n```\n", "'```bash' is none of console, sh, python"),
        ("- a\n  ```sh\n  true\n  ```\n", "line 2: '  ```sh' is none of"),
    ],
)
def test_a_block_that_would_be_passed_over(tmp_path, text, said):
    done, _ = run(tmp_path, text)
    assert done.returncode == 1
    assert said in done.stderr


def test_what_is_printed_now_is_written(tmp_path):
    done, file = run(tmp_path, GOOD.replace("one\n…\n9.5 s", "three"), "--write")
    assert done.returncode == 1
    assert "$ printf 'one\\ntwo\\n1.5 s\\n'\none\ntwo\n1.5 s\n```" in file.read_text()
    assert run(tmp_path, file.read_text())[0].returncode == 0
