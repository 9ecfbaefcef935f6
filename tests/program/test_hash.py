"""`nola hash` gives what `nola-edge hash` gives."""

import json
import os

from nola_edge.files.content_hash import content_hash
from tests.conftest import snapshot


def test_files_and_folders(nola, tiny, tmp_path):
    base, _ = tiny
    (base / "empty").write_bytes(b"")
    (base / "ü b").write_bytes(b"x" * ((1 << 20) + 1))
    (base / ".hidden").write_text("counts")
    (tmp_path / "link").symlink_to(base)
    before = snapshot(tmp_path)
    for path in (base, base / "ü b", base / "empty", tmp_path / "link", f"{base}//./"):
        wanted = content_hash(path)
        for options in ([], ["--threads", "1"], ["--threads", "3"]):
            assert nola("hash", path, *options).stdout == wanted.sha256 + "\n"
        found = json.loads(nola("hash", "--json", path).stdout)
        assert found == {
            "path": str(path), "sha256": wanted.sha256, "bytes": wanted.nbytes,
            "files": wanted.files,
        }  # fmt: skip
        assert list(found["files"]) == list(wanted.files)
    assert nola("hash", "-q", base).stdout == ""
    assert snapshot(tmp_path) == before


def test_refusals(nola, python_tool, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "link").symlink_to(folder)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "a\nb").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "link").symlink_to("nowhere")
    for path in ("", "nothing", "folder", "pipe", "linked", "named", "broken"):
        arguments = ["hash", tmp_path / path if path else path]
        assert nola.refused(*arguments) == python_tool.refused(*arguments), path
