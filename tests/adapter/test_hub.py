"""A path that does not exist is looked up on the Hub only where it cannot be a mistyped one."""

import http.server
import json
import shutil
import threading

import numpy as np
import pytest

from tests.cli.test_cli import run
from tests.conftest import snapshot, tiny_adapter, write_safetensors

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one adapter, somebody/french, and a list of what it was asked."""
    tiny_adapter().save(tmp_path / "served")
    asked = []

    def entry(file):
        size = file.stat().st_size
        return {"type": "file", "path": file.name, "size": size, "oid": COMMIT}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            name = self.path.split("?")[0]
            files = {f"/somebody/french/resolve/{COMMIT}/{f.name}": f for f in served}
            if name.startswith("/api/models/somebody/french/tree/"):
                self.answer(200, json.dumps([entry(f) for f in served]).encode())
            elif name.startswith("/api/models/somebody/french"):
                siblings = [{"rfilename": f.name} for f in served]
                body = json.dumps({"id": "somebody/french", "sha": COMMIT, "siblings": siblings})
                self.answer(200, body.encode())
            elif name in files:
                self.answer(200, files[name].read_bytes(), name)
            else:
                self.answer(404, b"{}")

        def answer(self, status, body, name=""):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{abs(hash(name))}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    served = sorted((tmp_path / "served").iterdir())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    yield asked
    server.shutdown()
    server.server_close()


def refused(*arguments, **environment):
    """Run a command that is refused; return the lines on stderr."""
    done = run(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert all(line.isprintable() for line in done.stderr.splitlines())
    return done.stderr.splitlines()


COMMANDS = [
    ["inspect", "{}"],
    ["pack", "{}", "-o", "out.nola"],
    ["merge", "base", "{}=0.5", "-o", "out.safetensors"],
    ["export", "lora", "{}", "--base", "base", "-o", "out"],
]


@pytest.mark.parametrize(
    ("command", "kind"),
    [*((c, "folder") for c in COMMANDS), (COMMANDS[0], "file"), (COMMANDS[0], "dangling link")],
)
def test_a_mistyped_path_stays_here(hub, tmp_path, command, kind):
    here = tmp_path / "here"
    if kind == "folder":
        (here / "somebody").mkdir()
    elif kind == "file":
        (here / "somebody").write_bytes(b"")
    else:
        (here / "somebody").symlink_to(here / "nothing")
    write_safetensors(here / "base", {"w": np.ones(3, np.float32)})
    before = snapshot(here)
    (line,) = refused(*(word.format("somebody/french") for word in command))
    assert line == (
        "nola-edge: somebody/french: does not exist, but somebody does, so this is not an adapter "
        "on the Hugging Face Hub; correct the path"
    )
    assert not hub
    assert snapshot(here) == before


@pytest.mark.parametrize("location", ["./french", "../french", "french", "a/b/c", "-a/b", "a/b/"])
def test_what_is_no_id_is_never_looked_up(hub, location):
    (line,) = refused("inspect", "--", location)
    assert line == f"nola-edge: {location}: does not exist"
    assert not hub


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nobody_is_asked(hub, name):
    (line,) = refused("inspect", "somebody/french", **{name: "1"})
    assert line == (
        "nola-edge: somebody/french: does not exist, and is not in the cache of the Hugging Face "
        "Hub, which is not asked while HF_HUB_OFFLINE is set"
    )
    assert not hub


def test_one_line_says_that_the_hub_is_asked(hub):
    said, error = refused("inspect", "somebody/absent")
    assert said == "somebody/absent: is not here, looked up on the Hugging Face Hub"
    assert error.startswith("nola-edge: somebody/absent: does not exist here and cannot be had")
    assert hub


def test_a_download_and_then_its_cache(hub, tmp_path):
    done = run("inspect", "somebody/french")
    assert done.returncode == 0, done.stderr
    assert "somebody/french: is not here, looked up on the Hugging Face Hub\n" in done.stderr
    count = len(hub)
    assert count
    again = run("inspect", "somebody/french", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert again.stderr == (
        "somebody/french: is not here, taken from the cache of the Hugging Face Hub\n"
    )
    assert again.stdout == done.stdout
    assert len(hub) == count
    shutil.rmtree(tmp_path / "home")
    refused("inspect", "somebody/french", HF_HUB_OFFLINE="1")


def test_what_is_here_wins_without_a_word(hub, tmp_path):
    (tmp_path / "here" / "somebody").mkdir()
    tiny_adapter().save(tmp_path / "here" / "somebody" / "french")
    done = run("inspect", "somebody/french")
    assert (done.returncode, done.stderr) == (0, "")
    assert not hub
