"""Folders that appear complete or not at all, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.jobs.staged import staged


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write(target: Path, text: str, *, hidden: str = "") -> None:
    made = target.with_name(hidden) if hidden else target
    with staged(made) as folder:
        (folder / "a").write_text(text)
    made.rename(target)


def test_an_interruption_between_the_two_renames_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename
    write(out, "old")

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == ".staging-out":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(out, "new")
    assert (out / "a").read_text() == "old"
    assert names(tmp_path) == ["out/a"]
    out.rename(tmp_path / ".replaced-out")  # killed there
    with pytest.raises(ZeroDivisionError), staged(out):
        raise ZeroDivisionError
    assert (out / "a").read_text() == "old"


def test_what_appears_meanwhile_is_not_replaced_unless_meant(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught, staged(tmp_path / "out", replace=False):
        write(tmp_path / "out", "theirs", hidden="elsewhere")
    assert caught.value.code == "output.exists"
    assert (tmp_path / "out/a").read_text() == "theirs"
    write(tmp_path / "out", "mine")
    assert names(tmp_path) == ["out/a"]
    assert (tmp_path / "out/a").read_text() == "mine"


def test_two_at_once_do_not_mix_and_what_a_kill_left_is_nobodys(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as folder:
        (folder / "a").write_text("first")
        with pytest.raises(EngineError) as caught:
            write(out, "second")
        assert caught.value.code == "output.busy"
    assert (out / "a").read_text() == "first"
    (tmp_path / ".staging-out").mkdir()
    (tmp_path / ".staging-out/b").write_text("half")
    write(out, "third")
    assert names(tmp_path) == ["out/a"]
