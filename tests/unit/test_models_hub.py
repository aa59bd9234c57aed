"""The hub, alive and dead: a real HTTP server on this machine plays every answer the hub can give.

Each case runs in its own process, because the hub library reads its settings when it is imported.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c" * 40
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
PARAMETERS = 32 * 8 + 8 + (4 * 8 * 8) + (3 * 8 * 16) + 2 * 8


def weights() -> bytes:
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [PARAMETERS], "data_offsets": [0, 4 * PARAMETERS]}}
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(4 * PARAMETERS)


GOOD = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": weights(),
    "pytorch_model.bin": b"\x80\x02 pickle",
    "modeling_evil.py": b"raise SystemExit",
    "onnx/model.safetensors": b"variant",
}
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "acme/good": GOOD,
    "acme/pickled": {"config.json": GOOD["config.json"], "pytorch_model.bin": b"\x80\x02"},
    "acme/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b""},
    "acme/ggufs": {"model-Q4.gguf": b"GGUF"},
    "acme/evil": {"config.json": json.dumps(CONFIG | {"auto_map": {"AutoModelForCausalLM": "x.Y"}}).encode()},
    "acme/broken": {"config.json": b"{", "model.safetensors": b""},
    "acme/stuck-tokenizer": GOOD,
    "acme/slow-line": GOOD | {"tokenizer.json": b" " * 720_000},
    "acme/half": {"config.json": GOOD["config.json"], "model.safetensors": weights()[:-7]},
}
STATUS: dict[str, tuple[Any, ...]] = {
    "acme/gated": (403, "GatedRepo"),
    "acme/missing": (404, "RepoNotFound"),
    "acme/private": (401, ""),
    "acme/badtoken": (401, "", "Invalid credentials in Authorization header"),
    "acme/busy": (429, ""),
    "acme/down": (503, ""),
    "acme/plain404": (404, ""),
}


@dataclass
class Hub:
    """The server and what it was asked."""

    url: str
    release: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        repository = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repository == "acme/hangs":
            self.hub.release.wait(60)
            return
        if repository == "acme/drips":
            self.drip()
        elif repository == "acme/garbage":
            self.answer(200, b"<html>please log in to the hotel network</html>")
        elif repository in STATUS:
            status, code, *message = STATUS[repository]
            self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "".join(message)})
        elif repository in REPOSITORIES:
            self.repository(repository, path)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def repository(self, name: str, path: str) -> None:
        files = REPOSITORIES[name]
        if path.startswith("/api/models/"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", COMMIT):
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            listing = [{"rfilename": key, "size": len(value)} for key, value in files.items()]
            body = {"id": name, "sha": COMMIT, "siblings": listing, "gated": False}
            body["safetensors"] = {"parameters": {"F32": PARAMETERS}, "total": PARAMETERS}
            self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            return
        content = files.get(path.partition(f"/resolve/{COMMIT}/")[2])
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if name == "acme/slow-line" and path.endswith("tokenizer.json"):
            self.trickle(content, pause_seconds=0.3)
            return
        if name == "acme/stuck-tokenizer" and path.endswith("tokenizer.json"):
            self.trickle(content, pause_seconds=30)
            return
        self.answer(200, content, {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def drip(self) -> None:
        """Sends one byte a second: no single read times out, and it never ends."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        try:
            while not self.hub.release.wait(0.5):
                self.wfile.write(b" ")
                self.wfile.flush()
        except OSError:
            return

    def trickle(self, content: bytes, pause_seconds: float) -> None:
        """A slow line: 60 KB after every pause."""
        self.send_response(200)
        self.send_header("ETag", f'"{sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(content), 60_000):
            self.hub.release.wait(pause_seconds)
            try:
                self.wfile.write(content[start : start + 60_000])
                self.wfile.flush()
            except OSError:
                return

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Handler.hub
    Handler.hub.release.set()
    server.shutdown()
    server.server_close()


HASTE = {"request_seconds": 1.0, "describe_seconds": 3.0, "tokenizer_seconds": 3.0}
"""Limits for hubs that never answer. One that does answer gets as long as a busy machine may take."""
PROGRAM = """
import json, sys, time
from huggingface_hub import HfApi, hf_hub_download  # a slow import: it is no part of what is limited
from engine.errors import EngineError
from engine.models import hub
from engine.models.analyze import analyze_model
from engine.models.resolve import download_weights, resolve_model
task = json.loads(sys.argv[1])
hub.REQUEST_SECONDS = task.get("request_seconds", 30.0)
hub.fetch_small_files.__kwdefaults__.update(
    request_seconds=hub.REQUEST_SECONDS,
    describe_seconds=task.get("describe_seconds", 40.0),
    tokenizer_seconds=task.get("tokenizer_seconds", 40.0),
)
began, answer, progress = time.monotonic(), {}, []
try:
    ref = resolve_model(task["source"], revision=task.get("revision", ""), offline=task.get("offline", False))
    if task.get("download"):
        ref = download_weights(ref, lambda done, total: progress.append((done, total)))
    found = analyze_model(ref)
    answer = {"kind": ref.kind, "path": str(ref.path), "has_weights": ref.has_weights, "commit": ref.commit,
        "parameters": found.parameters, "origin": found.parameters_source, "notes": found.notes, "progress": progress}
except EngineError as error:
    answer = {"error": error.as_dict()}
answer["seconds"] = time.monotonic() - began
print(json.dumps(answer))
"""


def ask(
    address: str, cache: Path, source: str, *, environment: dict[str, str] | None = None, **task: Any
) -> dict[str, Any]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_OFFLINE"))}
    clean |= {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps({"source": source, **task})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=clean | (environment or {}))
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_hub_model_is_described_from_its_small_files_only(hub: Hub, tmp_path: Path) -> None:
    answer = ask(hub.url, tmp_path, "acme/good")
    assert (answer["kind"], answer["parameters"], answer["origin"]) == ("hub", PARAMETERS, "config")
    assert (answer["has_weights"], answer["commit"]) == (False, COMMIT)
    assert not [path for path in hub.asked if path.endswith((".safetensors", ".bin", ".py"))]


def test_described_model_is_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    ask(hub.url, tmp_path, "acme/good")
    requests = len(hub.asked)
    offline = ask(hub.url, tmp_path, "acme/good", offline=True)
    switched_off = ask(hub.url, tmp_path, "acme/good", environment={"HF_HUB_OFFLINE": "1"})
    assert offline["parameters"] == switched_off["parameters"] == PARAMETERS
    assert len(hub.asked) == requests
    dead = ask("http://127.0.0.1:9", tmp_path, "acme/good")
    assert dead["parameters"] == PARAMETERS
    assert any("cached copy" in note for note in dead["notes"])


def test_download_takes_safetensors_and_json_and_never_pickle_or_code(hub: Hub, tmp_path: Path) -> None:
    answer = ask(hub.url, tmp_path, "acme/good", download=True)
    assert (answer["has_weights"], answer["origin"], answer["parameters"]) == (True, "headers", PARAMETERS)
    names = {entry.name for entry in Path(answer["path"]).iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    wanted = sum(len(GOOD[name]) for name in names)
    done = [done for done, _ in answer["progress"]]
    assert done == sorted(done)
    assert answer["progress"][-1] == [wanted, wanted]
    assert not [path for path in hub.asked if "pickle" in path or path.endswith((".bin", ".py")) or "onnx" in path]


def test_downloaded_weights_that_are_cut_off_are_found(hub: Hub, tmp_path: Path) -> None:
    assert ask(hub.url, tmp_path, "acme/half", download=True)["error"]["code"] == "safetensors.damaged"


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("acme/gated", "hub.gated", "hf auth login"),
        ("acme/missing", "hub.not_found", "spelling"),
        ("acme/private", "hub.not_found", "hf auth login"),
        ("acme/badtoken", "hub.bad_token", "new token"),
        ("acme/plain404", "hub.not_found", "spelling"),
        ("acme/busy", "hub.busy", "Wait"),
        ("acme/down", "hub.unreachable", "network"),
        ("acme/garbage", "hub.unreachable", "network"),
        ("acme/hangs", "hub.unreachable", "network"),
        ("acme/drips", "hub.unreachable", "network"),
        ("acme/pickled", "model.pickle", "save_pretrained"),
        ("acme/adapter", "model.adapter", "base model"),
        ("acme/ggufs", "model.gguf", "original"),
        ("acme/evil", "model.remote_code", "supports itself"),
        ("acme/broken", "model.config_damaged", "again"),
        ("meta-llama/Llama-3.2-3B-Instuct", "hub.not_found", "Did you mean meta-llama/Llama-3.2-3B"),
    ],
)
def test_every_bad_answer_of_the_hub_is_a_clear_error_within_the_limit(
    hub: Hub, tmp_path: Path, source: str, code: str, words: str
) -> None:
    limits = HASTE if source in ("acme/hangs", "acme/drips") else {}
    answer = ask(hub.url, tmp_path, source, **limits)
    assert answer["error"]["code"] == code
    assert words in answer["error"]["next_step"]
    assert source.rpartition("/")[2] in answer["error"]["what"]
    assert answer["seconds"] < 10


def test_slow_line_that_does_bring_the_tokenizer_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    answer = ask(hub.url, tmp_path, "acme/slow-line", **HASTE | {"tokenizer_seconds": 40})
    assert answer["seconds"] > 3, "longer than the limit for the config"
    assert (Path(answer["path"]) / "tokenizer.json").stat().st_size == 720_000
    assert answer["notes"] == []


def test_tokenizer_that_does_not_come_is_noted_and_the_model_still_described(hub: Hub, tmp_path: Path) -> None:
    answer = ask(hub.url, tmp_path, "acme/stuck-tokenizer", tokenizer_seconds=3.0)
    assert answer["parameters"] == PARAMETERS
    assert any("tokenizer.json" in note for note in answer["notes"])
    assert answer["seconds"] < 10


def test_missing_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    error = ask(hub.url, tmp_path, "acme/good", revision="v9")["error"]
    assert (error["code"], "'v9'" in error["what"]) == ("hub.no_revision", True)


def test_offline_and_not_cached_says_so_without_asking(hub: Hub, tmp_path: Path) -> None:
    for options in ({"offline": True}, {"environment": {"HF_HUB_OFFLINE": "1"}}):
        error = ask(hub.url, tmp_path, "acme/good", **options)["error"]
        assert error["code"] == "hub.offline"
        assert str(tmp_path) in error["cause"]
    assert hub.asked == []


def test_misspelt_hub_id_gets_a_suggestion_offline_too(hub: Hub, tmp_path: Path) -> None:
    error = ask(hub.url, tmp_path, "meta-llama/Llama-3.2-3B-Instuct", offline=True)["error"]
    assert "Did you mean meta-llama/Llama-3.2-3B" in error["next_step"]


def test_hub_that_refuses_connections_and_unknown_host_end_within_the_limit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid", "not a url"):
        answer = ask(address, tmp_path, "acme/good", **HASTE)
        assert answer["error"]["code"] == "hub.unreachable"
        assert answer["seconds"] < 10


def test_hub_that_accepts_and_says_nothing_ends_within_the_limit(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        answer = ask(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, "acme/good", **HASTE)
    assert answer["error"]["code"] == "hub.unreachable"
    assert answer["seconds"] < 10


def test_known_model_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    answer = ask(hub.url, tmp_path, "meta-llama/Llama-3.2-3B")
    assert (answer["kind"], answer["parameters"]) == ("profile", 3_212_749_824)
    assert hub.asked == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_cache_is_named(hub: Hub, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert ask(hub.url, tmp_path, "acme/good")["error"]["code"] == "hub.cache"
    finally:
        tmp_path.chmod(0o700)


def test_cache_path_that_is_a_file_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = ask(hub.url, tmp_path / "file", "acme/good")["error"]
    assert error["code"] == "hub.cache"
    assert "HF_HOME" in error["next_step"]
