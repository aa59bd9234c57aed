"""What was written is read, whatever tore, shrank, is unknown, or is not there yet."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs.journal import JournalTail, JournalWriter, read_head_events, read_tail_events
from tests.support.fake_worker import step_event, write_events


def steps(count: int, first: int = 1) -> list[ev.AnyEvent]:
    return [step_event(1000.0 + step, step, 500, 0.5) for step in range(first, first + count)]


def write_all(path: Path, events: list[ev.AnyEvent]) -> None:
    with JournalWriter(path) as journal:
        for event in events:
            journal.write(event)


def test_every_kind_of_event_comes_back_equal(tmp_path: Path) -> None:
    story: list[ev.AnyEvent] = [
        ev.Start(t=1.0, attempt=1, pid=7, versions={"torch": "2.13"}),
        ev.Plan(t=2.0, total_steps=4, rows=9, tokens_per_epoch=8, trained_tokens_per_epoch=3, parameters=5,
                trainable_parameters=1),
        ev.Phase(t=3.0, name="training"),
        *steps(2),
        ev.Sample(t=1003.0, step=2, prompt="Why?", text="“Weil.”\n\tEnde \U0001f600", expected=""),
        ev.Meter(t=1004.0, cpu_percent=1.5, ram_bytes=2, ram_total_bytes=3, gpus=(ev.GpuMeter(0, 1, 2, None, 60.0),)),
        ev.End(t=1005.0, outcome="paused", step=2),
    ]  # fmt: skip
    write_all(tmp_path / "journal.jsonl", story)
    assert JournalTail(tmp_path).read_new() == story


def test_each_call_returns_only_what_is_new(tmp_path: Path) -> None:
    tail = JournalTail(tmp_path)
    assert tail.read_new() == []
    journal = JournalWriter(tmp_path / "journal.jsonl")
    for event in steps(3):
        assert not tail.has_news()
        journal.write(event)
        assert tail.has_news()
        assert tail.read_new() == [event]


def test_a_partial_last_line_is_not_read_until_it_is_complete(tmp_path: Path) -> None:
    first, second = steps(2)
    write_all(tmp_path / "journal.jsonl", [first, second])
    whole = (tmp_path / "journal.jsonl").read_bytes()
    cut = whole.index(b"\n") + 20
    (tmp_path / "journal.jsonl").write_bytes(whole[:cut])
    tail = JournalTail(tmp_path)
    assert tail.read_new() == [first]
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(whole[cut:])
    assert tail.read_new() == [second]
    assert (tail.damaged_lines, tail.resets) == (0, 0)


def test_a_writer_after_a_torn_line_starts_on_a_fresh_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_all(path, steps(2))
    path.write_bytes(path.read_bytes()[:-10])
    write_all(path, steps(2, first=2))
    tail = JournalTail(tmp_path)
    assert tail.read_new() == [*steps(1), *steps(2, first=2)]
    assert tail.damaged_lines == 1


def test_a_file_that_shrank_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_all(path, steps(5))
    tail = JournalTail(tmp_path)
    assert len(tail.read_new()) == 5
    write_events(path, steps(2))
    assert tail.read_new() == steps(2)
    assert tail.resets == 1


def test_a_file_that_was_replaced_by_a_longer_one_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_all(path, steps(2))
    tail = JournalTail(tmp_path)
    tail.read_new()
    write_events(tmp_path / "other", steps(9))
    (tmp_path / "other").replace(path)
    assert tail.read_new() == steps(9)


def test_unknown_kinds_and_fields_are_passed_over(tmp_path: Path) -> None:
    newer = {"kind": "hologram", "t": 5.0, "depth": 3}
    extended = json.loads(json.dumps({"kind": "warn", "t": 6.0, "message": "hot", "colour": "red"}))
    lines = [json.dumps(newer), json.dumps(extended), "{\x00garbage", '"text"', "[]", ""]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    tail = JournalTail(tmp_path)
    assert tail.read_new() == [ev.Warn(t=6.0, message="hot")]
    assert (tail.unknown_lines, tail.damaged_lines) == (1, 3)


def test_a_loss_that_is_not_a_number_survives_json(tmp_path: Path) -> None:
    write_all(tmp_path / "journal.jsonl", [step_event(1.0, 1, 2, 0.1), ev.Eval(t=2.0, step=1, loss=math.nan)])
    step, evaluation = JournalTail(tmp_path).read_new()
    assert isinstance(step, ev.Step)
    assert isinstance(evaluation, ev.Eval)
    assert math.isnan(evaluation.loss)


def test_both_files_are_merged_by_time_and_keep_their_own_order(tmp_path: Path) -> None:
    worker: list[ev.AnyEvent] = [ev.Log(t=t, message=f"w{t}") for t in (1.0, 4.0, 3.0, 8.0)]
    runner: list[ev.AnyEvent] = [ev.Heartbeat(t=t) for t in (0.5, 3.5, 5.0, 9.0)]
    write_events(tmp_path / "journal.jsonl", worker)
    write_events(tmp_path / "runner.jsonl", runner)
    merged = JournalTail(tmp_path).read_new()
    assert [event.t for event in merged] == [0.5, 1.0, 3.5, 4.0, 3.0, 5.0, 8.0, 9.0]


def test_a_line_longer_than_the_read_buffer_is_read(tmp_path: Path) -> None:
    long = ev.Log(t=1.0, message="x" * 900_000)
    write_all(tmp_path / "journal.jsonl", [*steps(1), long, *steps(1, first=2)])
    assert JournalTail(tmp_path).read_new() == [*steps(1), long, *steps(1, first=2)]


@given(data=st.data(), count=st.integers(1, 12))
@settings(max_examples=120, deadline=None)
def test_whatever_is_cut_off_only_the_torn_line_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    run_dir = tmp_path_factory.mktemp("torn")
    path = run_dir / "journal.jsonl"
    write_all(path, steps(count))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    write_all(path, steps(2, first=100))
    tail = JournalTail(run_dir)
    events = tail.read_new()
    # A cut just before the line end leaves a whole line, which the next writer's fresh line completes.
    assert events[-2:] == steps(2, first=100)
    assert events[:-2] in (steps(complete), steps(complete + 1))
    assert tail.damaged_lines <= 1


def test_head_and_tail_agree_with_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_events(path, steps(400))
    assert read_head_events(path) == steps(400)
    head = read_head_events(path, max_bytes=5000)
    tail = read_tail_events(path, max_bytes=5000)
    assert head == steps(len(head))
    assert tail == steps(len(tail), first=401 - len(tail))
    assert len(tail) > 10
    assert read_tail_events(path, max_bytes=10**9, after=path.stat().st_size) == []


def test_a_full_disk_is_named_and_the_next_line_is_whole_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = JournalWriter(path)
    journal.write(steps(1)[0])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, before[1]))
        with pytest.raises(EngineError) as caught:
            journal.write(steps(1, first=2)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "disk.full"
    journal.write(steps(1, first=3)[0])
    assert JournalTail(tmp_path).read_new() == [*steps(1), *steps(1, first=3)]


def test_a_writer_that_is_killed_at_any_moment_leaves_a_readable_journal(tmp_path: Path) -> None:
    program = (
        "import sys, itertools\nfrom pathlib import Path\n"
        "from engine.jobs.journal import JournalWriter\nfrom engine.jobs.events import Log\n"
        "journal = JournalWriter(Path(sys.argv[1]))\n"
        "for n in itertools.count():\n    journal.write(Log(t=float(n), message=str(n) * 50))\n"
    )
    tail = JournalTail(tmp_path)
    events: list[ev.AnyEvent] = []
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "journal.jsonl")])
        seen = len(events)
        while len(events) < seen + 2000:
            assert writer.poll() is None
            events += tail.read_new()
        os.kill(writer.pid, 9)
        writer.wait()
    events += tail.read_new()
    assert all(isinstance(event, ev.Log) for event in events)
    assert tail.damaged_lines <= 3
    assert tail.resets == 0
