"""The feed: few messages, none without news, quick on long journals, gone with its screen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from textual.message import Message

from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL
from engine.jobs.spec import DataSection, JobSpec
from engine.jobs.state import RunPhase
from engine.jobs.store import list_runs
from scaler_tui.feeds import engine_thread
from scaler_tui.feeds.engine_thread import EngineDone, EngineFailed, EngineThread
from scaler_tui.feeds.journal_feed import POST_SECONDS, JournalFeed, RunUpdated
from scaler_tui.feeds.runs_feed import RunsFeed, RunsListed
from scaler_tui.feeds.twin import ask_twin
from tests.support.fake_worker import recorded_run, step_event, worker_command
from tests.support.golden_runs import Golden, write_golden


class Collector:
    """An inbox that keeps what it gets, with the time."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, Message]] = []
        self.closed = False

    def post_message(self, message: Message) -> bool:
        self.messages.append((time.monotonic(), message))
        return not self.closed

    def wait(self, condition: Callable[[list[Message]], bool], seconds: float = 20) -> list[Message]:
        deadline = time.monotonic() + seconds
        while True:
            found = [message for _, message in self.messages]
            if condition(found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.005)


def updates(found: list[Message]) -> list[RunUpdated]:
    return [message for message in found if isinstance(message, RunUpdated)]


def stop_and_wait(feed: JournalFeed | RunsFeed) -> None:
    feed.stop()
    deadline = time.monotonic() + 5
    while feed.is_alive:
        assert time.monotonic() < deadline, "the thread does not end"
        time.sleep(0.01)


def test_a_journal_that_grows_fast_gives_at_most_two_messages_a_second() -> None:
    run_dir = write_golden(Golden(steps=0, total_steps=10_000))
    inbox = Collector()
    feed = JournalFeed(run_dir, inbox)
    feed.start()
    began = time.monotonic()
    with JournalWriter(run_dir / JOURNAL) as journal:
        step = 0
        while time.monotonic() - began < 2.6:
            step += 1
            journal.write(step_event(time.time(), step, 10_000, 0.002))
            time.sleep(0.002)
        inbox.wait(lambda found: bool(updates(found)) and updates(found)[-1].snapshot.state.step == step)
    stop_and_wait(feed)
    moments = [moment for moment, _ in inbox.messages]
    assert len(moments) >= 4
    assert all(later - earlier >= POST_SECONDS * 0.98 for earlier, later in pairwise(moments))


def test_nothing_is_posted_while_nothing_changes() -> None:
    inbox = Collector()
    feed = JournalFeed(recorded_run(50), inbox)
    feed.start()
    inbox.wait(lambda found: len(found) == 1)
    looks = time.monotonic() + 2.5
    while time.monotonic() < looks:  # longer than any period of the feed
        time.sleep(0.05)
    stop_and_wait(feed)
    assert len(inbox.messages) == 1


def test_a_snapshot_does_not_change_while_the_run_goes_on() -> None:
    run_dir = write_golden(Golden())
    inbox = Collector()
    feed = JournalFeed(run_dir, inbox)
    feed.start()
    first = updates(inbox.wait(lambda found: bool(updates(found))))[0].snapshot
    step, lines = first.state.step, len(first.state.log)
    with JournalWriter(run_dir / JOURNAL) as journal:
        journal.write(ev.Log(t=time.time(), message="more"))
        journal.write(ev.End(t=time.time(), outcome="paused", step=84))
    inbox.wait(lambda found: updates(found)[-1].snapshot.state.state is RunPhase.PAUSED)
    stop_and_wait(feed)
    assert (first.state.step, len(first.state.log), first.state.state) == (step, lines, RunPhase.RUNNING)


def test_a_rewritten_journal_is_folded_from_its_start() -> None:
    run_dir = write_golden(Golden(steps=84))
    inbox = Collector()
    feed = JournalFeed(run_dir, inbox)
    feed.start()
    inbox.wait(lambda found: bool(updates(found)))
    other = write_golden(Golden(steps=10))
    (run_dir / JOURNAL).write_bytes((other / JOURNAL).read_bytes())
    inbox.wait(lambda found: updates(found)[-1].snapshot.state.step == 10)
    stop_and_wait(feed)


def test_a_vanished_run_directory_is_no_traceback(tmp_path: Path) -> None:
    inbox = Collector()
    feed = JournalFeed(tmp_path / "gone", inbox)
    feed.start()
    found = updates(inbox.wait(lambda found: bool(found)))
    assert found[0].snapshot.state.state is RunPhase.QUEUED
    assert found[0].snapshot.spec_problem
    stop_and_wait(feed)


def test_a_closing_screen_ends_the_feed_by_itself() -> None:
    inbox = Collector()
    inbox.closed = True
    feed = JournalFeed(recorded_run(10), inbox)
    feed.start()
    deadline = time.monotonic() + 5
    while feed.is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_catching_up_with_a_hundred_thousand_steps_costs_a_few_times_what_parsing_their_lines_does() -> None:
    run_dir = recorded_run(100_000)
    began = time.process_time()
    with (run_dir / JOURNAL).open("rb") as journal:
        lines = sum(bool(json.loads(line)) for line in journal)
    parsing = time.process_time() - began
    assert lines > 100_000
    inbox = Collector()
    feed = JournalFeed(run_dir, inbox)
    began = time.process_time()
    feed.start()
    snapshot = updates(inbox.wait(lambda found: bool(updates(found)), seconds=300))[0].snapshot
    took = time.process_time() - began
    stop_and_wait(feed)
    assert snapshot.state.step == 100_000
    assert len(snapshot.loss) <= 2_000
    # Processor time: a busy machine makes it no longer.
    assert took < 5 * parsing  # the real budget is measured by bench/display.py; this catches a quadratic reader


def test_the_list_reads_only_runs_that_can_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    from scaler_tui.feeds import runs_feed

    finished, live = recorded_run(20), write_golden(Golden())
    feed = RunsFeed(Collector())
    assert {run.directory for run in feed.look()} == {finished, live}
    read: list[Path] = []
    summarize = runs_feed.summarize
    monkeypatch.setattr(runs_feed, "summarize", lambda run_dir: (read.append(run_dir), summarize(run_dir))[1])
    feed.look()
    assert read == [live]
    with JournalWriter(finished / JOURNAL) as journal:
        journal.write(ev.Log(t=time.time(), message="more"))
    feed.look()
    assert read == [live, live, finished] or sorted(read[1:]) == sorted([live, finished])


def test_the_list_posts_only_changes() -> None:
    inbox = Collector()
    recorded_run(20)
    feed = RunsFeed(inbox)
    feed.start()
    inbox.wait(lambda found: len(found) == 1)
    recorded_run(30)
    found = inbox.wait(lambda found: len(found) == 2)
    stop_and_wait(feed)
    assert [len(message.runs) for message in found if isinstance(message, RunsListed)] == [1, 2]


def test_the_engine_thread_launches_a_run_that_does_not_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALER_WIZARD_WORKER", worker_command())
    inbox, thread = Collector(), EngineThread()
    gate = threading.Event()
    monkeypatch.setattr(engine_thread, "ask_twin", lambda *words: ask_twin(*words) if gate.wait(60) else None)
    thread.launch(JobSpec(name="threaded"), inbox)
    assert not inbox.messages  # the caller never waits
    gate.set()
    reply = inbox.wait(lambda found: bool(found), seconds=60)[0]
    assert isinstance(reply, EngineDone)
    thread.close()
    feed = JournalFeed(reply.run_dir, inbox)
    feed.start()
    inbox.wait(lambda f: bool(updates(f)) and updates(f)[-1].snapshot.state.state is RunPhase.FINISHED, seconds=60)
    stop_and_wait(feed)


def test_the_engine_thread_answers_with_the_engines_own_error() -> None:
    inbox, thread = Collector(), EngineThread()
    thread.control(recorded_run(5), "pause", inbox)
    reply = inbox.wait(lambda found: bool(found))[0]
    thread.close()
    assert isinstance(reply, EngineFailed)
    assert reply.error.code == "control.not_running"


def test_an_unexpected_error_in_the_engine_thread_becomes_an_answer_and_the_thread_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import engine.jobs.control as control

    inbox, thread = Collector(), EngineThread()
    run_dir = recorded_run(5)

    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(control, "request", broken)
    thread.control(run_dir, "pause", inbox)
    first = inbox.wait(lambda found: len(found) == 1)[0]
    assert isinstance(first, EngineFailed)
    assert "boom" in first.error.cause
    monkeypatch.setattr(control, "request", lambda *_: None)
    thread.control(run_dir, "pause", inbox)
    assert isinstance(inbox.wait(lambda found: len(found) == 2)[1], EngineDone)
    thread.close()


def test_a_merge_that_cannot_work_says_why_and_keeps_its_output() -> None:
    inbox, thread = Collector(), EngineThread()
    run_dir = recorded_run(5)
    thread.merge(run_dir, inbox)
    reply = inbox.wait(lambda found: bool(found), seconds=90)[0]
    thread.close()
    assert isinstance(reply, EngineFailed)
    assert isinstance(reply.error, EngineError)
    assert reply.error.what != ""
    assert reply.error.next_step or reply.error.cause


def test_feeds_are_daemon_threads_so_that_leaving_never_waits() -> None:
    feed = JournalFeed(recorded_run(5), Collector())
    feed.start()
    names = {thread.name: thread.daemon for thread in threading.enumerate()}
    assert all(daemon for name, daemon in names.items() if name.startswith("journal"))
    stop_and_wait(feed)


def test_a_spec_that_would_train_nothing_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    spec = JobSpec(data=DataSection(train=str(empty), heldout="", base_text=""))
    inbox, thread = Collector(), EngineThread()
    thread.launch(spec, inbox)
    reply = inbox.wait(lambda found: bool(found), seconds=60)[0]
    thread.close()
    assert isinstance(reply, EngineFailed)
    assert "empty" in reply.error.what.lower()
    assert list_runs() == []
