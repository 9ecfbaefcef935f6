"""A Hugging Face Hub on this machine, as far as downloads ask it."""

import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from urllib.parse import quote


def commit_of(name, revision):
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


def answers_of(name, revision, folder):
    """Return the answer to every path that a download asks for, with the commit."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    commit = commit_of(name, revision)
    about = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
    tree = [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in files.items()
    ]
    answers = {f"/api/models/{name}": json.dumps(about).encode()} if revision == "main" else {}
    for asked in (revision.replace("/", "%2F"), commit):
        answers[f"/api/models/{name}/revision/{asked}"] = json.dumps(about).encode()
        answers[f"/api/models/{name}/tree/{asked}"] = json.dumps(tree).encode()
        for path, data in files.items():
            answers[f"/{name}/resolve/{asked}/{quote(path)}"] = data
    return {path: (body, commit) for path, body in answers.items()}


@contextmanager
def serving(repositories, tmp_path, monkeypatch):
    """Serve repositories, {name: {revision: folder}}; yield the paths that are asked for."""
    answers, asked = {}, []
    for name, revisions in repositories.items():
        for revision, folder in revisions.items():
            answers.update(answers_of(name, revision, folder))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            body, commit = answers.get(self.path.split("?")[0], (b"{}", None))
            self.send_response(404 if commit is None else 200)
            self.send_header("Content-Length", str(len(body)))
            if commit is not None:
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
