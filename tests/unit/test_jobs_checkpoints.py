"""A checkpoint is whole or it is passed over, and a full disk costs nothing that was good before."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs import checkpoints, layout
from engine.jobs.checkpoints import MANIFEST, commit, folder_name, latest, prune, saving, stage_dir, sweep, verify

REQUIRED = ("optimizer.bin", "rng/state.bin")


def save(run_dir: Path, step: int) -> Path:
    with saving(run_dir, step, required=REQUIRED) as folder:
        (folder / "optimizer.bin").write_bytes(bytes([step % 256]) * 5000)
        (folder / "rng").mkdir()
        (folder / "rng" / "state.bin").write_bytes(os.urandom(64))
    return run_dir / layout.CHECKPOINTS / folder_name(step)


def names(run_dir: Path) -> list[str]:
    return sorted(entry.name for entry in (run_dir / layout.CHECKPOINTS).iterdir())


def test_a_saved_checkpoint_verifies_and_is_the_latest(tmp_path: Path) -> None:
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    assert verify(newest, required=REQUIRED) == []
    assert latest(tmp_path, required=REQUIRED) == checkpoints.Found(newest, 20, ())
    assert checkpoints.newest_step(tmp_path) == 20
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) == checkpoints.Found(None, 0, ())


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    tree = json.loads((folder / MANIFEST).read_text())
    change(tree)
    (folder / MANIFEST).write_text(json.dumps(tree))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a missing file": lambda folder: (folder / "optimizer.bin").unlink(),
    "a missing file in a subfolder": lambda folder: (folder / "rng/state.bin").unlink(),
    "a truncated file": lambda folder: os.truncate(folder / "optimizer.bin", 100),
    "an emptied file": lambda folder: os.truncate(folder / "optimizer.bin", 0),
    "zeroed bytes": lambda folder: zero_half(folder / "optimizer.bin"),
    "one flipped bit": lambda folder: flip_a_bit(folder / "rng/state.bin"),
    "a missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a truncated manifest": lambda folder: os.truncate(folder / MANIFEST, 40),
    "a zeroed manifest": lambda folder: zero_half(folder / MANIFEST),
    "another step in the manifest": lambda folder: edit_manifest(folder, lambda tree: tree.update(step=10)),
    "a file dropped from the manifest": lambda folder: edit_manifest(folder, lambda tree: tree["files"].pop()),
    "a directory in place of a file": lambda folder: (
        (folder / "optimizer.bin").unlink(),
        (folder / "optimizer.bin").mkdir(),
    ),
    "a renamed folder": lambda folder: folder.rename(folder.with_name(folder_name(30))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    before = save(tmp_path, 10)
    DAMAGE[damage](save(tmp_path, 20))
    found = latest(tmp_path, required=REQUIRED)
    assert (found.path, found.step) == (before, 10)
    assert len(found.messages) == 1
    assert "damaged" in found.messages[0]


def test_the_message_names_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    save(tmp_path, 10)
    os.truncate(save(tmp_path, 20) / "optimizer.bin", 100)
    (message,) = latest(tmp_path).messages
    assert "step 20" in message
    assert "optimizer.bin has 100 bytes instead of 5000" in message


def test_a_manifest_that_agrees_with_a_swapped_file_is_still_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    flip_a_bit(folder / "optimizer.bin")
    digest = checkpoints._sha256_of(folder / "optimizer.bin")
    edit_manifest(folder, lambda tree: tree["files"][0].update(sha256=digest))  # type: ignore[index]
    assert verify(folder) == [f"{MANIFEST} was changed"]


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    folder = save(tmp_path, 10)
    edit_manifest(folder, lambda tree: tree["files"][0].update(path="../../secret"))  # type: ignore[index]
    assert any("outside" in problem for problem in verify(folder))


def test_a_checkpoint_without_a_required_file_is_never_committed(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    with pytest.raises(EngineError, match=r"rng/state\.bin"), saving(tmp_path, 20, required=REQUIRED) as folder:
        (folder / "optimizer.bin").write_bytes(b"x")
    assert latest(tmp_path).path == good
    assert names(tmp_path) == ["step-00000010"]


def test_a_checkpoint_that_lacks_what_this_version_needs_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 10)
    found = latest(tmp_path, required=[*REQUIRED, "sampler.json"])
    assert found.path is None
    assert "sampler.json is not part of it" in found.messages[0]


def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), saving(tmp_path, 10) as folder:
        (folder / "half").write_bytes(b"x" * (1 // len(names(tmp_path)[1:])))
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_save_are_swept(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    (stage_dir(tmp_path, 20) / "half").write_bytes(b"x")
    good.rename(good.with_name(f".replaced-{good.name}"))  # killed between the two renames
    sweep(tmp_path)
    assert names(tmp_path) == ["step-00000010"]
    assert verify(good) == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    (folder / "optimizer.bin").write_bytes(b"damaged")
    save(tmp_path, 10)
    assert verify(folder, required=REQUIRED) == []
    assert names(tmp_path) == ["step-00000010"]


def test_pruning_keeps_the_newest_sound_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    os.truncate(tmp_path / layout.CHECKPOINTS / folder_name(40) / "optimizer.bin", 1)
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000020", "step-00000030", "step-00000040"]
    assert latest(tmp_path).step == 30


def test_a_process_killed_while_saving_never_leaves_a_wrong_latest(tmp_path: Path) -> None:
    program = (
        "import sys, itertools\nfrom pathlib import Path\nfrom engine.jobs import checkpoints\n"
        "for step in itertools.count(1):\n"
        "    with checkpoints.saving(Path(sys.argv[1]), step) as folder:\n"
        "        (folder / 'a').write_bytes(bytes([step % 256]) * 300_000)\n"
        "        (folder / 'b').write_bytes(bytes([step % 256]) * 300_000)\n"
        "    checkpoints.prune(Path(sys.argv[1]), 2)\n"
    )
    for wanted in (3, 8, 15):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        while checkpoints.newest_step(tmp_path) < wanted:
            assert writer.poll() is None
        writer.kill()
        writer.wait()
        sweep(tmp_path)
        found = latest(tmp_path, required=["a", "b"])
        assert found.path is not None
        assert found.step >= wanted
        assert found.messages == ()


# ── a disk without room ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 KiB: EFBIG, the errno of a limit where a full disk gives ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_file_size_limit_is_a_full_disk_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    with pytest.raises(EngineError) as caught, saving(tmp_path, 20) as folder:
        (folder / "optimizer.bin").write_bytes(b"x" * 200_000)
    assert caught.value.code == "disk.full"
    assert "kept" in caught.value.next_step
    assert latest(tmp_path).path == good
    assert names(tmp_path) == ["step-00000010"]


@pytest.mark.usefixtures("small_files")
def test_the_manifest_itself_may_be_what_does_not_fit(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    staging = stage_dir(tmp_path, 20)
    for number in range(800):
        (staging / f"shard-{number}").write_bytes(b"x")
    with pytest.raises(EngineError) as caught:
        commit(staging, 20)
    assert caught.value.code == "disk.full"
    assert not staging.exists()
    assert latest(tmp_path).path == good


def test_room_is_asked_for_before_the_save(tmp_path: Path) -> None:
    good = save(tmp_path, 10)
    with pytest.raises(EngineError) as caught:
        stage_dir(tmp_path, 20, expected_bytes=1 << 60)
    assert caught.value.code == "disk.full"
    assert latest(tmp_path).path == good


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] file write failed: No space left on device"),
        Exception("Error while serializing: I/O error: File too large (os error 27)"),
        OSError(28, "No space left on device"),
    ],
)
def test_libraries_that_hide_the_errno_are_understood(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(EngineError) as caught, saving(tmp_path, 10):
        raise error
    assert caught.value.code == "disk.full"


def test_a_really_full_disk_keeps_the_last_good_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        good = save(disk, 10)
        with pytest.raises(EngineError) as caught, saving(disk, 20) as folder:
            (folder / "weights").write_bytes(b"x" * 2_000_000)
        assert caught.value.code == "disk.full"
        assert latest(disk).path == good
        assert names(disk) == ["step-00000010"]
        assert save(disk, 30).is_dir()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
