"""What a remote run is made of, piece by piece: the wheel, the bundles, the mirror, what ssh says."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs import elsewhere
from engine.jobs.elsewhere import REMOTE, RemoteRecord, write_record
from engine.jobs.spec import JobSpec
from engine.jobs.spec_paths import Named, NamedKind
from engine.jobs.spec_toml import load_spec, with_absolute_paths
from engine.jobs.state import RunPhase
from engine.jobs.store import find_run, list_runs
from engine.jobs.summary import quick_state
from engine.remote import farside, mirror, wheel
from engine.remote.far.common import blob_path
from engine.remote.faults import ssh_error
from engine.remote.fetch import listed_files
from engine.remote.hashes import Hashes
from engine.remote.inputs import collect, placed, with_places
from engine.remote.ssh import Host, parse_host
from engine.resources import demo_model_dir
from scaler_tui.cli import main
from tests.support.cli import wait_for
from tests.support.fake_worker import recorded_run


# ── the wheel ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def packed() -> wheel.Wheel:
    return wheel.pack()


def test_the_wheel_holds_program_data_and_a_record_that_is_true(packed: wheel.Wheel) -> None:
    archive = zipfile.ZipFile(BytesIO(packed.content))
    names = set(archive.namelist())
    assert {"engine/jobs/runner.py", "scaler_tui/cli.py", "engine/_data/profiles/gpus.toml"} <= names
    assert "engine/_data/demo/model/model.safetensors" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
    record = archive.read("scaler_wizard-0.1.0.dist-info/RECORD").decode().splitlines()
    assert {line.split(",")[0] for line in record} == names
    assert "torch" in packed.requirements
    assert "pytest" not in packed.requirements


def test_a_wheel_can_be_made_again_from_its_own_installation(packed: wheel.Wheel, tmp_path: Path) -> None:
    (tmp_path / packed.name).write_bytes(packed.content)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(tmp_path / packed.name)], check=True, capture_output=True)
    code = "import engine; from engine.remote.wheel import pack; w = pack(); print(engine.__file__, w.sha)"
    told = subprocess.run(
        [sys.executable, "-P", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
    ).stdout.split()
    assert told[0].startswith(str(site))
    assert told[1] == packed.sha


# ── bundles ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    shutil.copytree(demo_model_dir(), tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "text" / "deep").mkdir(parents=True)
    (tmp_path / "text" / ".hidden").write_text("no")
    (tmp_path / "text" / "a.txt").write_text("one")
    (tmp_path / "text" / "deep" / "b.txt").write_text("two")
    (tmp_path / "text" / "c.md").write_text("three")
    (tmp_path / "spec.toml").write_text(
        'task = "full"\n[model]\nsource = "model"\n[training]\nmax_steps = 5\n'
        '[[sources]]\nname = "all"\npath = "text"\n[[sources]]\nname = "some"\npath = "text/*.txt"\n'
        '[[sources]]\nname = "hub"\npath = "hub:owner/name"\n'
    )
    return with_absolute_paths(load_spec(tmp_path / "spec.toml"), tmp_path)


def test_bundles_hold_what_a_name_stands_for_and_nothing_else(spec: JobSpec, tmp_path: Path) -> None:
    bundles = {bundle.key: bundle for bundle in collect(spec)}
    assert set(bundles) == {"model.source", "sources[1].path", "sources[2].path"}
    assert "pytorch_model.bin" not in {file.name for file in bundles["model.source"].files}
    assert {file.name for file in bundles["sources[1].path"].files} == {"a.txt", "deep/b.txt", "c.md"}
    assert {file.name for file in bundles["sources[2].path"].files} == {"a.txt"}
    places = {bundle.value: f"/there/{bundle.tail}" for bundle in bundles.values()}
    moved = with_places(spec, places)
    assert moved.model.source == "/there/"
    assert [source.path for source in moved.sources] == ["/there/", "/there/*.txt", "hub:owner/name"]


def test_a_bundle_is_named_by_its_content(spec: JobSpec, tmp_path: Path) -> None:
    before = [bundle.name for bundle in collect(spec)]
    assert before == [bundle.name for bundle in collect(spec)]
    (tmp_path / "text" / "a.txt").write_text("One")
    assert before != [bundle.name for bundle in collect(spec)]


def test_a_missing_file_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('task = "lora"\n[data]\ntrain = "nothing.jsonl"\n')
    with pytest.raises(EngineError) as error:
        collect(with_absolute_paths(load_spec(tmp_path / "spec.toml"), tmp_path))
    assert error.value.code == "remote.input"
    assert "data.train" in error.value.what


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path, read = tmp_path / "weights", []
    path.write_bytes(b"1" * 100)
    os.utime(path, (1, 1))
    hashes = Hashes()
    assert hashes.of(path, read.append) == hashlib.sha256(b"1" * 100).hexdigest()
    hashes.save()
    Hashes().of(path, read.append)
    assert read == [100], "the second look reads nothing"
    path.write_bytes(b"2" * 100)
    assert Hashes().of(path, read.append) == hashlib.sha256(b"2" * 100).hexdigest()


# ── the mirror ────────────────────────────────────────────────────────────────────────────────────────────────────
RECORD = elsewhere.RemoteRecord(host="box", directory="/far/runs/x", python="/usr/bin/python3", program=("python3",))


def mirrored(outcome: str = "") -> Path:
    """The mirror of a recorded run of 40 steps, without its journals yet."""
    original = recorded_run(40, outcome=outcome)
    original = original.rename(original.with_name(f".{original.name}"))
    return mirror.create(
        original.name[1:], RECORD, (original / "spec.toml").read_bytes(), (original / "run.json").read_bytes()
    )


def linked(run_dir: Path, *, working: bool = True, connected: bool = True) -> None:
    import time

    now = time.time()
    elsewhere.write_link(run_dir, elsewhere.LinkRecord(heard=now, looked=now, connected=connected, working=working))


def feed(run_dir: Path, pieces: int = 7) -> None:
    original = run_dir.with_name(f".{run_dir.name}")
    for name in ("journal.jsonl", "runner.jsonl"):
        content = (original / name).read_bytes()
        size = len(content) // pieces
        for offset in range(0, len(content), size):
            mirror.Mirror(run_dir).append(name, offset, content[offset : offset + size])


def test_a_mirror_is_a_run_like_any_other() -> None:
    run_dir = mirrored()
    linked(run_dir)
    feed(run_dir)
    assert find_run("latest") == run_dir
    (run,) = list_runs()
    assert (run.state, run.step, run.warning) == (RunPhase.RUNNING, 40, ""), "its processes need not be seen from here"


def test_a_mirror_whose_host_says_nobody_works_is_lost_and_one_out_of_reach_is_not() -> None:
    run_dir = mirrored()
    feed(run_dir)
    linked(run_dir, connected=False)
    state = quick_state(run_dir)
    assert state.state is RunPhase.RUNNING
    assert "goes on" in state.warning
    linked(run_dir, working=False)
    assert quick_state(run_dir).state is RunPhase.LOST


def test_what_a_mirror_has_is_told_by_length_and_last_bytes() -> None:
    run_dir = mirrored()
    feed(run_dir)
    content = (run_dir / "journal.jsonl").read_bytes()
    size, sha = mirror.Mirror(run_dir).offsets()["journal.jsonl"]
    assert (size, sha) == (len(content), hashlib.sha256(content[-4096:]).hexdigest())
    mirror.Mirror(run_dir).append("journal.jsonl", 10, b"anew\n")
    assert (run_dir / "journal.jsonl").read_bytes() == content[:10] + b"anew\n"


EVIL_NAMES = (
    "../../escaped.json", "..", "/tmp/escaped.json", "remote.json", "link.json", "Remote.JSON", "tail.lock", "tail.log",
    "./remote.json", "stages/../remote.json", ".//link.json", "stages/remote.json", "output/../remote.json",
    "output/../../escaped.json", "output//a.json", "output/./a.json", "", ".", "output/", "a\n.json", "out\\a.json",
    "leads_out/escaped.json", "leads_out/escaped.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_host_cannot_write_outside_the_mirror_nor_change_where_it_points(name: str, tmp_path: Path) -> None:
    run_dir = mirrored()
    (tmp_path / "out").mkdir()
    (run_dir / "leads_out").symlink_to(tmp_path / "out")
    before = sorted(run_dir.rglob("*"))
    for write in (
        lambda: mirror.Mirror(run_dir).replace(name, b"{}"),
        lambda: mirror.Mirror(run_dir).append(name, 0, b"{}"),
        lambda: listed_files(
            run_dir, {"files": [{"name": name, "size": 1, "sha": "0" * 64}]}, ["output", name.split("/")[0]]
        ),
    ):
        with pytest.raises(EngineError) as error:
            write()
        assert error.value.code == "remote.name"
    assert elsewhere.record_of(run_dir) == RECORD
    assert sorted(run_dir.rglob("*")) == before
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name", ["spec.toml", "run.lock", "control/stop.json", "output/a.json", "checkpoints/a.jsonl", ".a.json", "a.jsonl"]
)
def test_a_mirror_takes_only_what_a_tail_sends(name: str) -> None:
    run_dir = mirrored()
    with pytest.raises(EngineError) as error:
        mirror.Mirror(run_dir).replace(name, b"{}")
    assert error.value.code == "remote.name"


@pytest.mark.parametrize(
    ("name", "size", "sha", "code"),
    [
        ("spec.toml", 1, "0" * 64, "remote.name"),
        ("checkpoints/a", 1, "0" * 64, "remote.name"),
        ("output/a", -1, "0" * 64, "remote.failed"),
        ("output/a", 1, "/../../a", "remote.failed"),
    ],
)
def test_only_what_was_asked_for_is_fetched(name: str, size: int, sha: str, code: str) -> None:
    run_dir = mirrored()
    with pytest.raises(EngineError) as error:
        listed_files(run_dir, {"files": [{"name": name, "size": size, "sha": sha}]}, ["output"])
    assert error.value.code == code
    fine = {"files": [{"name": "output/adapter/a.bin", "size": 1, "sha": "0" * 64}]}
    assert [file.name for file in listed_files(run_dir, fine, ["output"])] == ["output/adapter/a.bin"]


def test_a_run_of_this_machine_is_never_taken_for_a_mirror() -> None:
    own = recorded_run(5)
    with pytest.raises(EngineError) as error:
        mirror.create(own.name, RECORD, b"", b"")
    assert error.value.code == "remote.same_place"
    assert not elsewhere.is_elsewhere(own)


# ── ssh ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ssh: Could not resolve hostname nope: Name or service not known\r\n", "remote.unknown_host"),
        ("ssh: Could not resolve hostname box: Temporary failure in name resolution", "remote.unreachable"),
        ("ssh: connect to host box port 22: Connection refused", "remote.unreachable"),
        ("ssh: connect to host box port 22: Connection timed out", "remote.unreachable"),
        ("me@box: Permission denied (publickey,password).", "remote.denied"),
        ("Host key verification failed.", "remote.host_key_unknown"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "remote.host_key_changed",
        ),
        ("client_loop: send disconnect: Broken pipe", "remote.dropped"),
        ("", "remote.dropped"),
    ],
)
def test_what_ssh_says_becomes_what_happened_and_what_to_do(said: str, code: str) -> None:
    error = ssh_error("box", said)
    assert error.code == code
    assert "box" in error.what
    assert error.next_step


@pytest.mark.parametrize("name", ["", "-oProxyCommand=evil", "two words"])
def test_what_is_no_host_is_refused(name: str) -> None:
    with pytest.raises(EngineError) as error:
        parse_host(name)
    assert error.value.code == "remote.host"


def test_our_end_of_a_connection_needs_nothing_but_python(tmp_path: Path) -> None:
    (tmp_path / "far.pyz").write_bytes(farside.archive())
    answer = subprocess.run(
        [sys.executable, "-S", "-P", str(tmp_path / "far.pyz"), "look"],
        input=json.dumps({"home": str(tmp_path / "home")}).encode() + b"\n",
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
    ).stdout
    assert json.loads(answer.splitlines()[-1])["answer"]["home"] == str(tmp_path / "home")


def test_a_command_is_one_word_for_the_login_shell_there() -> None:
    words = Host("box").command("echo 'a b'; exit 3")
    assert words[-3:-1] == ["--", "box"]
    shell = subprocess.run(["sh", "-c", words[-1]], capture_output=True, text=True, check=False)
    assert (shell.stdout, shell.returncode) == ("a b\n", 3)
    assert "-oBatchMode=yes" in words


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["box"], "usage"),
        (["box", "spec.toml", "--list"], "usage"),
        (["--list", "--attach", "x", "box"], "usage"),
        (["-box", "spec.toml"], "usage"),
        (["box", "missing.toml"], "toml.unreadable"),
        (["fetch", "nothing"], "run.unknown"),
    ],
)
def test_what_remote_cannot_do_is_refused_in_words(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["remote", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == error


def test_a_run_of_this_machine_has_nothing_to_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = recorded_run(5)
    assert main(["remote", "fetch", run_dir.name, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "run.not_elsewhere"


def test_a_spec_written_to_another_folder_names_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.jobs.spec import SourceSection
    from scaler_tui.spec_file import write_spec

    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = (SourceSection(name="web", path="text/*.txt"), SourceSection(name="hub", path="hub:owner/name"))
    write_spec(JobSpec(sources=sources), Path("there") / "spec.toml")
    found = with_absolute_paths(load_spec(Path("there") / "spec.toml"), tmp_path / "there")
    assert Path(found.sources[0].path).resolve() == tmp_path / "text" / "*.txt"
    assert found.sources[1].path == "hub:owner/name"


def _receiver(root: Path, content: bytes, silent_seconds: int = 60) -> subprocess.Popen[bytes]:
    """What runs on the host while a file is copied there; it reads the file from its standard input."""
    order = {"root": str(root), "files": [{"sha": _sha(content), "offset": 0, "size": len(content)}]}
    program = f"from engine.remote.far import files; files.SILENT_SECONDS = {silent_seconds}; files.receive({order!r})"
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_two_connections_that_copy_one_file_at_once_leave_it_whole(tmp_path: Path) -> None:
    content = b"weights " * 100_000
    both = [_receiver(tmp_path, content) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:  # either may be first: the other one reads nothing until it is done
        list(pool.map(lambda receiver: receiver.communicate(content), both))
    assert [receiver.returncode for receiver in both] == [0, 0]
    assert blob_path(tmp_path, _sha(content)).read_bytes() == content
    assert not blob_path(tmp_path, _sha(content)).with_suffix(".part").exists()


def test_a_connection_that_broke_unnoticed_does_not_keep_a_file_from_the_next_one(tmp_path: Path) -> None:
    content = b"weights " * 100_000
    part = blob_path(tmp_path, _sha(content)).with_suffix(".part")
    broken = _receiver(tmp_path, content, silent_seconds=3)
    assert broken.stdin is not None
    assert broken.stderr is not None
    broken.stdin.write(content[:300_000])
    broken.stdin.flush()
    wait_for(
        lambda: part.exists() and part.stat().st_size > 0, "a part of the file"
    )  # it holds the file, and will hear nothing more
    following = _receiver(tmp_path, content)
    following.communicate(content, timeout=60)
    assert following.returncode == 0
    assert blob_path(tmp_path, _sha(content)).read_bytes() == content
    assert broken.wait(60) != 0
    assert b"Nothing arrived for 3 seconds" in broken.stderr.read()
    broken.stdin.close()


def test_the_record_of_a_mirror_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_record(
        tmp_path,
        RemoteRecord(host="there", directory="/runs/1", ssh=("sshpass", "ssh"), python="python3", program=("sw",)),
    )
    assert (tmp_path / REMOTE).stat().st_mode & 0o077 == 0


def test_a_group_of_benchmarks_travels_with_the_files_of_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "mine.yaml").write_text("group: mine\ntask:\n  - first\n  - second\n")
    (tmp_path / "a.yaml").write_text("task: first\ndataset_kwargs: {data_files: {test: a.jsonl}}\n")
    (tmp_path / "below" / "b.yaml").write_text('task: "second"  # mine\ninclude: _shared.yml\n')
    (tmp_path / "below" / "_shared.yml").write_text("test_split: test\n")
    (tmp_path / "other.yaml").write_text("task: third\n")
    (tmp_path / "a.jsonl").write_text("{}\n")
    found = placed(Named("evaluation.tasks[1]", str(tmp_path / "mine.yaml"), NamedKind.TASK))
    assert found is not None
    assert {name for _, name in found.files} == {"mine.yaml", "a.yaml", "a.jsonl", "below/b.yaml", "below/_shared.yml"}
