"""The log of a race: what was measured outlasts a kill, and another race's file is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.errors import EngineError
from engine.jobs.length_report import LengthPerplexity, LengthReport
from engine.jobs.race_lines import Contender, RaceRow, RaceStarted
from engine.rotary.race_log import RaceLog

STARTED = RaceStarted(
    model="demo",
    original=256,
    target=1024,
    contenders=(Contender(method="none", title=""), Contender(method="yarn", title="YaRN")),
    lengths=(256, 1024),
    fingerprint="0123",
)


def row(method: str, perplexity: float = 4.0) -> RaceRow:
    entry = LengthPerplexity(length=1024, nll=1.0, perplexity=perplexity, tokens=10, documents=1)
    return RaceRow(method=method, report=LengthReport(model="demo", window=1024, original=256, perplexity=(entry,)))


def written(path: Path, *rows: RaceRow) -> bytes:
    log = RaceLog(path, STARTED)
    for entry in rows:
        log.add(entry)
    log.close()
    return path.read_bytes()


def test_rows_are_found_again_and_the_newest_counts(tmp_path: Path) -> None:
    written(tmp_path / "log", row("none"), row("yarn", 9.0), row("yarn", 5.0))
    log = RaceLog(tmp_path / "log", STARTED)
    assert log.rows == {"none": row("none"), "yarn": row("yarn", 5.0)}


def test_a_log_cut_anywhere_keeps_its_whole_rows_and_takes_new_ones(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", row("none"), row("yarn"))
    first, second = (len(b"".join(whole.splitlines(keepends=True)[:count])) for count in (1, 2))
    for cut in range(0, len(whole), 37):
        path = tmp_path / f"cut-{cut}"
        path.write_bytes(whole[:cut])
        log = RaceLog(path, STARTED)
        assert list(log.rows) == ["none"] * (cut >= second), f"cut at {cut}, lines end at {first} and {second}"
        log.add(row("yarn"))
        log.close()
        assert "yarn" in RaceLog(path, STARTED).rows


def test_methods_may_differ_and_what_was_measured_on_may_not(tmp_path: Path) -> None:
    before = written(tmp_path / "log", row("none"))
    fewer = replace(STARTED, contenders=STARTED.contenders[:1], rule="another sentence")
    again = RaceLog(tmp_path / "log", fewer)
    assert list(again.rows) == ["none"]
    again.close()
    for change in ({"seed": 5}, {"fingerprint": "4567"}, {"lengths": (256, 512)}, {"target": 512}):
        with pytest.raises(EngineError, match="another race") as caught:
            RaceLog(tmp_path / "log", replace(STARTED, **change))
        assert caught.value.code == "race.log"
    assert (tmp_path / "log").read_bytes() == before


@pytest.mark.parametrize("content", ["my notes", "my notes\nof two lines\n", '{"mine": 1}\n', '{"kind":"race.row"}\n'])
def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "notes").write_text(content)
    with pytest.raises(EngineError, match="is not a race's log") as caught:
        RaceLog(tmp_path / "notes", STARTED)
    assert "Remove" not in caught.value.next_step
    assert (tmp_path / "notes").read_text() == content


def test_two_races_do_not_write_to_one_log(tmp_path: Path) -> None:
    first = RaceLog(tmp_path / "log", STARTED)
    with pytest.raises(EngineError, match="Another race"):
        RaceLog(tmp_path / "log", STARTED)
    first.close()
    RaceLog(tmp_path / "log", STARTED).close()


def test_what_cannot_be_opened_as_a_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "log"):
        with pytest.raises(EngineError, match="cannot be opened") as caught:
            RaceLog(path, STARTED)
        assert caught.value.code == "race.log"
        assert "--log" in caught.value.next_step
