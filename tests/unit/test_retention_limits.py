"""Limits of a training, looked at together, and the checkpoint that is gone back to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@dataclass
class Scripted:
    """A limit that says what it was told to, by step."""

    verdicts: dict[int, tuple[bool, bool]]
    guards: bool = True
    noted: list[int] = field(default_factory=list)

    def look(self, step: int, *, last: bool) -> object:
        from engine.train.limits import Verdict

        found = self.verdicts.get(step)
        return None if found is None else Verdict(*found, words=f"step {step}.")

    def kept(self, step: int) -> None:
        self.noted.append(step)


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "manifest.json"):
        (folder / name).write_text(name)
    return folder


def test_a_step_passes_only_where_every_limit_was_looked_at(tmp_path: Path) -> None:
    from engine.train.limits import Limits

    often, seldom = Scripted({1: (True, False), 2: (True, False)}), Scripted({2: (True, False)})
    limits = Limits(tmp_path, [often, seldom])
    first, second = limits.look(1, last=False), limits.look(2, last=False)
    assert first is not None
    assert second is not None
    assert (first.passed, second.passed) == (False, True)
    assert limits.look(3, last=False) is None


def test_what_only_measures_has_no_say(tmp_path: Path) -> None:
    from engine.train.limits import Limits

    gate, watch = Scripted({1: (True, False)}), Scripted({1: (False, True), 2: (False, True)}, guards=False)
    limits = Limits(tmp_path, [gate, watch])
    found = limits.look(1, last=False)
    assert found is not None
    assert found.passed
    assert limits.look(2, last=False) is None


def test_weights_of_the_last_good_step_outlive_their_checkpoint(tmp_path: Path) -> None:
    import shutil

    from engine.train.limits import Limits

    limit = Scripted({5: (True, False), 6: (False, True)})
    limits = Limits(tmp_path, [limit], stage=1)
    assert limits.good_step == 0
    limits.keep(checkpoint(tmp_path / "step-4"), 4)
    limits.keep(checkpoint(tmp_path / "step-5"), 5)
    shutil.rmtree(tmp_path / "step-5")
    assert limits.good_step == 5
    assert limit.noted == [4, 5]
    assert sorted(file.name for file in limits.folder.iterdir()) == ["adapter_model.safetensors", "good.json"]
    closing = limits.look(6, last=False)
    assert closing is not None
    assert closing.closes
    assert "The result is that of step 5" in closing.words
    other = Limits(tmp_path, [limit], stage=2)
    assert other.good_step == 0, "a later stage has other weights"
    closing = other.look(6, last=False)
    assert closing is not None
    assert "No checkpoint of this training kept every limit." in closing.words
