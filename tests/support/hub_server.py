"""A small server that speaks as much of the hub's API as an upload of a folder needs, over real HTTP.

Owns what it was sent: repositories, files, headers. Small files come inside the commit, large ones through the Git LFS
protocol, as huggingface_hub 2.4 sends them with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What arrived."""

    token: str
    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """ "owner/name/path" -> content."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content, as LFS stores it."""
    asked: list[str] = field(default_factory=list)
    refuses: str = ""
    """The words of a 403 to every commit."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.hub.asked.append(f"GET {self.path}")
        name = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revision/")[0]
        if name in self.hub.repositories:
            return self._send(200, {"id": name, "modelId": name, "sha": "0" * 40, "siblings": [], "tags": []})
        return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") not in (f"Bearer {self.hub.token}",) and "/objects/" not in self.path:
            return self._send(401, {"error": f"bad token {self.headers.get('Authorization')}"})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if "/preupload/" in self.path:
            names = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in names]
            return self._send(200, {"files": told})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if "/commit/" in self.path:
            return self._commit(body)
        return self._send(200, {})

    def do_PUT(self) -> None:
        self.hub.asked.append(f"PUT {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.objects[hashlib.sha256(body).hexdigest()] = body
        self._send(200, {})

    def _create(self, wish: dict[str, Any]) -> None:
        name = f"{wish['organization']}/{wish['name']}" if wish.get("organization") else wish["name"]
        self.hub.repositories.setdefault(name, wish)
        self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _batch(self, wish: dict[str, Any]) -> None:
        told = []
        for entry in wish["objects"]:
            href = f"{self.hub.url}/store/{entry['oid']}"
            missing = {} if entry["oid"] in self.hub.objects else {"actions": {"upload": {"href": href}}}
            told.append({"oid": entry["oid"], "size": entry["size"], "authenticated": True, **missing})
        self._send(200, {"transfer": "basic", "objects": told}, kind="application/vnd.git-lfs+json")

    def _commit(self, body: bytes) -> None:
        if self.hub.refuses:
            return self._send(403, {"error": f"{self.hub.refuses} {self.headers['Authorization']}"})
        repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "file":
                self.hub.files[f"{repository}/{entry['value']['path']}"] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                value = entry["value"]
                self.hub.files[f"{repository}/{value['path']}"] = self.hub.objects[value["oid"]]
        url = f"{self.hub.url}/{repository}/commit/{'1' * 40}"
        return self._send(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})

    def _send(
        self, code: int, tree: dict[str, Any], headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        content = json.dumps(tree).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """A server on a port of its own until the block ends."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
