"""A push to the hub: only when asked for, to a real server, and the token stays where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.export.finished import RECORD
from engine.export.push import check_repo_id, find_token
from tests.support.cli import ROOT, Result, cli, environment
from tests.support.hub_server import Hub, running_hub

TOKEN = "hf_secretsecretsecretsecret"


def pushed(hub: Hub, tmp_path: Path, *words: str, **variables: str) -> Result:
    """`export hf demo --push` without the comparison, from an empty folder."""
    settings = {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf-home"), "HF_DEBUG": "1",
    } | variables  # fmt: skip
    return cli("export", "hf", "demo", "--no-verify", *words, cwd=tmp_path, env=settings)


def test_a_push_brings_every_file_and_leaves_no_trace_of_the_token(tmp_path: Path) -> None:
    with running_hub(TOKEN) as hub:
        done = pushed(hub, tmp_path, "--push", "me/demo", "--private")
        assert done.code == 0, done.text
        assert f"Pushed to {hub.url}/me/demo" in done.out
        folder = tmp_path / "demo-hf"
        assert "private" in str(hub.repositories["me/demo"])
        for file in folder.iterdir():
            if file.name == RECORD:
                assert f"me/demo/{RECORD}" not in hub.files
                continue
            assert hub.files[f"me/demo/{file.name}"] == file.read_bytes(), file.name
        assert {"model.safetensors", "README.md", "config.json", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
        assert TOKEN not in done.text
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert written
        assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_a_refusal_of_the_hub_is_told_without_the_token_it_repeats(tmp_path: Path) -> None:
    with running_hub(TOKEN) as hub:
        hub.refuses = "You may not write here:"
        done = pushed(hub, tmp_path, "--push", "me/demo")
        assert done.code == 2
        assert "does not let this token write to me/demo" in done.err
        assert "Traceback" not in done.text
        assert TOKEN not in done.text
        made = (tmp_path / "demo-hf").stat().st_ino
        assert "not verified" in done.out, "what is to be known of it is told before it goes out"
        hub.refuses = ""
        again = pushed(hub, tmp_path, "--push", "me/demo")
        assert again.code == 0, again.text
        assert (tmp_path / "demo-hf").stat().st_ino == made, "the finished folder is pushed, not made again"
        assert "me/demo/README.md" in hub.files
        os.utime(tmp_path / "demo-hf" / "README.md", (1, 1))
        asked = len(hub.asked)
        assert pushed(hub, tmp_path, "--force").code == 0
        assert len(hub.asked) == asked, "without --push nothing is sent"


def test_an_upload_that_breaks_is_told_as_one(tmp_path: Path) -> None:
    with running_hub(TOKEN) as hub:
        url = hub.url
    done = pushed(hub, tmp_path, "--push", "me/demo", HF_ENDPOINT=url)
    assert done.code == 5, done.text
    assert "could not be uploaded to me/demo" in done.err
    assert "Cannot get" not in done.err
    assert (tmp_path / "demo-hf" / "README.md").is_file()


def test_the_token_is_on_no_command_line(tmp_path: Path) -> None:
    """The uploading process is looked at while it waits for the hub."""
    import socket

    from tests.support.cli import wait_for

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "README.md").write_text("x")
        settings = environment(
            HF_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}", HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0"
        )
        words = [sys.executable, "-m", "engine.export.push", str(tmp_path / "folder"), "me/demo"]
        process = subprocess.Popen(words, env=settings, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            server.settimeout(60)
            connection, _ = server.accept()
            heard = connection.recv(1 << 16)
            wait_for(lambda: b"/api/repos/create" in heard, "the first request")
            assert TOKEN.encode() in heard, "it goes to the hub"
            lines = {p.name: p.read_bytes() for p in (Path(f"/proc/{process.pid}/cmdline"),)}
            assert TOKEN.encode() not in lines["cmdline"]
            connection.close()
        finally:
            process.kill()
            process.wait()


def test_without_a_token_the_two_ways_to_give_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if "keyring" in sys.modules or any((Path(p) / "keyring").is_dir() for p in sys.path):
        pytest.skip("this Python has a keyring, whose content is not ours")
    with pytest.raises(EngineError) as caught:
        find_token()
    assert caught.value.code == "push.no_token"
    assert "HF_TOKEN" in caught.value.next_step
    assert "keyring set scaler-wizard huggingface" in caught.value.next_step


def test_the_keyring_is_asked_where_the_environment_says_nothing(tmp_path: Path) -> None:
    """A keyring package of the test's own, in a process that imports it as it would the real one."""
    (tmp_path / "keyring.py").write_text(
        "def get_password(service, user):\n    assert (service, user) == ('scaler-wizard', 'huggingface')\n"
        "    return 'from the ring'\n"
    )
    code = "from engine.export.push import find_token; assert find_token() == 'from the ring'"
    variables = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    variables["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    ended = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["demo", "a/b/c", "me/", "/x", "me/de mo", "../x", ""])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_written(name: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_repo_id(name)
    assert caught.value.code == "push.name"


def test_an_environment_that_says_offline_is_obeyed(tmp_path: Path) -> None:
    with running_hub(TOKEN) as hub:
        done = pushed(hub, tmp_path, "--push", "me/demo", HF_HUB_OFFLINE="1")
        assert done.code == 2
        assert "offline" in done.err
        assert not hub.asked
        assert not list(tmp_path.glob("*demo*")), "nothing was written for nothing"
