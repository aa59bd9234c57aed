"""Interrupted expansions: real processes killed, disks that fill up, Ctrl+C, and what a resume trusts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.expansion.plan_io import encode_plan
from engine.surgery.expand import ExpandRequest, expand, staging_folder
from engine.surgery.helpers import Progress
from engine.surgery.staging import PROGRESS
from tests.support.surgery_models import TINY, plan_for, read_folder, write_llama

AFTER = replace(TINY, hidden=48, ffn=96)
PLAN = plan_for(TINY, AFTER, {"hidden": "pad", "ffn": "pad"})
SHARD_BYTES = 20_000

# Grows for real; stops between two slices until a line arrives, so that it is certainly busy when it is killed.
CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from engine.expansion.plan_io import decode_plan
    from engine.surgery import helpers
    from engine.surgery.expand import ExpandRequest, expand
    helpers._REPORT_SECONDS = 0
    source, out, plan, shard_bytes, stop_at, resume = sys.argv[1:]
    def report(progress):
        if progress.phase == "weights" and progress.done_bytes >= int(stop_at) >= 0:
            print("stopped", flush=True)
            sys.stdin.readline()
    plan = decode_plan(Path(plan).read_bytes())
    request = ExpandRequest(Path(source), Path(out), plan, int(shard_bytes), proof=False, resume=resume == "resume")
    expand(request, report)
    """
)


def child(source: Path, out: Path, stop_at: int, *, resume: bool = False, prefix: str = "") -> subprocess.Popen[bytes]:
    plan = source.parent / "plan.json"
    plan.write_bytes(encode_plan(PLAN))
    words = [str(source), str(out), str(plan), str(SHARD_BYTES), str(stop_at), "resume" if resume else "start"]
    return subprocess.Popen(
        [sys.executable, "-c", prefix + CHILD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def grow(source: Path, out: Path, *, resume: bool = False, **options: object) -> list[Progress]:
    said: list[Progress] = []
    given: dict[str, object] = {"plan": PLAN, "shard_bytes": SHARD_BYTES, "proof": False, **options}
    expand(ExpandRequest(source, out, resume=resume, **given), said.append)  # type: ignore[arg-type]
    return said


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def logged_shards(out: Path) -> list[str]:
    path = staging_folder(out) / PROGRESS
    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))
    return [line["name"] for line in lines if line["step"] == "shard"]


def killed_half_way(source: Path, out: Path, stop_at: int = 100_000, shards: int = 2) -> None:
    """A real process, killed with SIGKILL after at least so many shards were sealed."""
    process = child(source, out, stop_at)
    assert process.stdout is not None
    assert process.stdout.readline() == b"stopped\n", process.stderr.read() if process.stderr else ""
    wait_until(lambda: len(logged_shards(out)) >= shards)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("model*.safetensors")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "src")


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> Path:
    grow(source, tmp_path / "whole")
    return tmp_path / "whole"


def same_bytes(one: Path, other: Path) -> bool:
    names = {path.name for path in one.iterdir()} - {"expansion.json"}
    if names != {path.name for path in other.iterdir()} - {"expansion.json"}:
        return False
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize(("stop_at", "shards"), [(0, 0), (60_000, 2), (130_000, 5)])
def test_killed_with_minus_nine_and_resumed_gives_the_same_bytes(
    source: Path, whole: Path, tmp_path: Path, stop_at: int, shards: int
) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out, stop_at, shards)
    assert not out.exists()
    logged = logged_shards(out)  # one more may have its name and, killed in that moment, no line yet
    before = {name: stamp for name, stamp in stamps(staging_folder(out)).items() if name in logged}
    assert len(before) >= shards
    grow(source, out, resume=True)
    assert same_bytes(whole, out)
    assert before.items() <= stamps(out).items(), "a finished shard was written again"


def test_killed_again_and_again_it_still_ends_with_the_same_bytes(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out, 40_000, 1)
    for stop_at in (70_000, 110_000):
        process = child(source, out, stop_at, resume=True)
        assert process.stdout is not None
        assert process.stdout.readline() == b"stopped\n"
        process.kill()
        process.communicate()
    grow(source, out, resume=True)
    assert same_bytes(whole, out)


def test_a_damaged_finished_shard_is_noticed_and_made_again(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out)
    name = logged_shards(out)[0]
    path = staging_folder(out) / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    grow(source, out, resume=True)
    assert same_bytes(whole, out)


def test_a_log_cut_in_its_last_line_is_read_up_to_there(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out)
    log = staging_folder(out) / PROGRESS
    os.truncate(log, log.stat().st_size - 20)
    grow(source, out, resume=True)
    assert same_bytes(whole, out)


def test_killed_between_the_last_two_steps_only_the_rename_is_left(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "whole").rename(staging_folder(out))
    grow(source, out, resume=True)
    assert read_folder(out)
    assert not staging_folder(out).exists()


def test_a_second_process_is_turned_away(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = child(source, out, 60_000)
    assert process.stdout is not None
    assert process.stdout.readline() == b"stopped\n"
    try:
        with pytest.raises(EngineError) as refused:
            grow(source, out, resume=True)
        assert refused.value.code == "surgery.busy"
    finally:
        process.kill()
        process.communicate()


def test_an_unfinished_expansion_is_not_started_over_silently(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out)
    with pytest.raises(EngineError) as refused:
        grow(source, out)
    assert refused.value.code == "surgery.unfinished"
    assert "--resume" in refused.value.next_step


def test_another_plan_is_not_resumed_into_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out)
    for options in ({"plan": replace(PLAN, seed=99)}, {"shard_bytes": 30_000}):
        with pytest.raises(EngineError) as refused:
            grow(source, out, resume=True, **options)
        assert refused.value.code == "surgery.other_plan"
    assert len(logged_shards(out)) >= 2, "what was finished must stay"


@pytest.mark.parametrize("how", ["touched", "config"])
def test_a_changed_source_is_not_resumed(source: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    killed_half_way(source, out)
    if how == "touched":
        os.utime(source / "model-00001-of-00002.safetensors")
    else:
        path = source / "config.json"
        path.write_text(path.read_text().replace("1e-05", "1e-06"))
    with pytest.raises(EngineError) as refused:
        grow(source, out, resume=True)
    assert refused.value.code == "surgery.source_changed"
    assert len(logged_shards(out)) >= 2


def test_nothing_to_resume_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as refused:
        grow(source, tmp_path / "out", resume=True)
    assert refused.value.code == "surgery.nothing_to_resume"


def test_ctrl_c_leaves_what_is_finished_to_a_resume(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = child(source, out, 100_000)
    assert process.stdout is not None
    assert process.stdout.readline() == b"stopped\n"
    wait_until(lambda: len(logged_shards(out)) >= 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert b"KeyboardInterrupt" in errors
    grow(source, out, resume=True)
    assert same_bytes(whole, out)


def test_a_disk_that_fills_up_is_said_and_resumed_when_there_is_room(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    largest = max(path.stat().st_size for path in whole.glob("*.safetensors"))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest - 1}, {largest - 1}))\n"
    process = child(source, out, -1, prefix=limit)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert b"There is no room left to write" in errors
    assert not out.exists()
    if staging_folder(out).exists():
        grow(source, out, resume=True)
    else:
        grow(source, out)
    assert same_bytes(whole, out)
