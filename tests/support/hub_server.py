"""A small Hub: datasets and checkpoints served by id from a folder, so that the stock loaders run as they do online.

    python -m tests.support.hub_server ROOT --port 8765
    HF_ENDPOINT=http://127.0.0.1:8765 HF_TOKEN=anything lmms_eval ...

``ROOT/datasets/OWNER/NAME`` and ``ROOT/models/OWNER/NAME`` hold the files. The only revision is what is there now. It
also answers as a judge model (``/v1/chat/completions``), always with the same score.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

FILE = re.compile(r"^/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
INFO = re.compile(r"^/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/([^/]+))?$")
TREE = re.compile(r"^/api/(datasets|models)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?$")
JUDGE = "/v1/chat/completions"
SCORE = "0.5"
"""What the judge says."""


def commit(repository: Path) -> str:
    """Return a commit id that changes with the files."""
    files = sorted(path for path in repository.rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha1(repr(state).encode()).hexdigest()


def listing(repository: Path, below: Path, recursive: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder as the Hub describes them."""
    found = []
    for path in sorted(below.rglob("*") if recursive else below.iterdir()):
        entry = {"path": path.relative_to(repository).as_posix(), "oid": hashlib.sha1(path.name.encode()).hexdigest()}
        if path.is_dir():
            found.append({**entry, "type": "directory", "size": 0})
        else:
            found.append({**entry, "type": "file", "size": path.stat().st_size})
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    seen: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, **headers: str) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def missing(self, code: str, **headers: str) -> None:
        self.reply(404, b'{"error": "not found"}', X_Error_Code=code, Content_Type="application/json", **headers)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.seen.append(f"{self.command} {path}")
        for pattern, answer in ((FILE, self.file), (TREE, self.tree), (INFO, self.info)):
            if match := pattern.match(path):
                kind, name, _, *rest = match.groups()
                repository = self.root / (kind or "models") / name
                if not repository.is_dir():
                    return self.missing("RepoNotFound")
                sha = commit(repository)
                return answer(repository, sha, *(part or "" for part in rest), query=parse_qs(address.query))
        return self.reply(404)

    do_HEAD = do_GET

    def file(self, repository: Path, sha: str, name: str, query: dict[str, list[str]]) -> None:
        path = repository / name
        if not path.is_file():
            return self.missing("EntryNotFound", X_Repo_Commit=sha)
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        return self.reply(200, body, ETag=etag, X_Repo_Commit=sha, Content_Type="application/octet-stream")

    def tree(self, repository: Path, sha: str, name: str, query: dict[str, list[str]]) -> None:
        if not (repository / name).is_dir():
            return self.missing("EntryNotFound", X_Repo_Commit=sha)
        recursive = query.get("recursive", [""])[0].lower() in ("1", "true")
        return self.json(listing(repository, repository / name, recursive), X_Repo_Commit=sha)

    def info(self, repository: Path, sha: str, query: dict[str, list[str]]) -> None:
        files = [entry for entry in listing(repository, repository, recursive=True) if entry["type"] == "file"]
        name = f"{repository.parent.name}/{repository.name}"
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in files]
        self.json({"_id": sha[:24], "id": name, "modelId": name, "sha": sha, "tags": [], "siblings": siblings})

    def do_POST(self) -> None:
        self.seen.append(f"POST {self.path}")
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != JUDGE:
            return self.reply(404)
        message = {"role": "assistant", "content": SCORE}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        head = {"id": "judge", "object": "chat.completion", "created": 0, "model": asked["model"]}
        return self.json({**head, "choices": choices, "usage": usage})


@dataclass
class Hub:
    """A running server."""

    url: str
    requests: list[str] = field(default_factory=list)
    """Method and path of each request, in order."""


@contextmanager
def serve(root: Path, port: int = 0) -> Iterator[Hub]:
    """Serve a folder on this machine until the block ends; port 0 takes a free one."""
    seen: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_address[1]}", seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    with serve(arguments.root, arguments.port) as hub:
        print(hub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
