"""Whose fault it is when several processes do not get on, and whether they start again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from engine.distributed.life import Life
from engine.distributed.place import Place
from engine.errors import EngineError
from engine.jobs import crew, ranks
from engine.jobs.liveness import process_start
from engine.jobs.ranks import Failure, Watch

HANG_SECONDS = 30.0


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as running:
        yield running
        running.kill()


class Ranks:
    """Writes signs as processes would; time is what the test says it is."""

    def __init__(self, run_dir: Path, world: int, pid: int) -> None:
        self.run_dir = run_dir
        (run_dir / ranks.FOLDER).mkdir()
        sign = msgspec.structs.replace(ranks.own_sign(0, world), pid=pid, process_start=process_start(pid) or 0.0)
        self.signs = [msgspec.structs.replace(sign, rank=rank) for rank in range(world)]
        self.watch = Watch(run_dir, world, HANG_SECONDS)

    def write(self, rank: int, **changes: object) -> None:
        sign = self.signs[rank]
        self.signs[rank] = msgspec.structs.replace(sign, beat=sign.beat + 1, **changes)
        ranks.write_sign(self.run_dir, self.signs[rank])

    def looks(self, seconds: Iterable[int], *alive: int) -> ranks.Trouble | None:
        """The first trouble, while those that are `alive` give signs: all that have given any, if none is named."""
        for second in seconds:
            for rank in alive or [sign.rank for sign in self.signs if sign.beat]:
                self.write(rank)
            if (trouble := self.watch.look(float(second))) is not None:
                return trouble
        return None

    def step(self, step: int, moves: int) -> None:
        for rank in range(len(self.signs)):
            self.write(rank, step=step, moves=moves, in_step=True, doing=f"step {step}: micro-batch 1 of 2")


@pytest.fixture
def two(tmp_path: Path, process: subprocess.Popen[bytes]) -> Ranks:
    return Ranks(tmp_path, 2, process.pid)


def test_a_process_that_gives_no_sign_is_named_before_the_limit_is_over(two: Ranks) -> None:
    two.step(3, 5)
    assert two.watch.look(100.0) is None
    for second in range(1, 40):
        two.write(0)
        trouble = two.watch.look(100.0 + second)
        if trouble is not None:
            break
    assert trouble is not None
    assert second <= HANG_SECONDS
    assert (trouble.kind, trouble.ranks, trouble.step) == ("process hung", (1,), 3)
    assert "Rank 1" in trouble.what
    assert "step 3: micro-batch 1 of 2" in trouble.what


def test_a_process_that_reads_large_files_may_be_silent_for_longer(two: Ranks) -> None:
    two.step(0, 1)
    two.write(1, in_step=False, slow=True, doing="loading model")
    for second in range(0, 280, 5):
        two.write(0)
        assert two.watch.look(float(second)) is None
    assert two.looks(range(280, 320), 0) is not None


def test_a_process_that_stays_behind_in_a_step_is_named_though_it_gives_signs(two: Ranks) -> None:
    for second, moves in ((0.0, 1), (2.0, 2), (4.0, 3)):
        two.step(3, moves)
        assert two.watch.look(second) is None
    two.write(0, moves=4, part=2, doing="step 3: micro-batch 2 of 2")
    trouble = None
    for second in range(5, 60):
        two.write(0)
        two.write(1)
        if (trouble := two.watch.look(float(second))) is not None:
            break
    assert trouble is not None
    assert 30 <= second <= 35
    assert (trouble.kind, trouble.ranks) == ("process hung", (1,))


def test_slow_steps_and_whatever_is_no_step_may_take_long(two: Ranks) -> None:
    two.step(3, 1)
    assert two.looks(range(25)) is None
    two.step(3, 2)  # a micro-batch took 25 s: 60 s are no hang
    assert two.looks(range(25, 86)) is None
    two.write(0, in_step=False, moves=3, doing="evaluating")
    assert two.looks(range(86, 1500, 5)) is None


def test_an_evaluation_that_stands_still_is_the_fault_of_who_does_it_and_not_of_who_waits(two: Ranks) -> None:
    two.step(3, 1)
    two.write(0, in_step=False, moves=2, part=9, doing="evaluating")
    two.write(1, in_step=False, moves=2, part=2, waits=True, doing="waiting for rank 0")
    seconds = int(HANG_SECONDS * ranks.PHASE_FACTOR)
    assert two.looks(range(0, seconds - 20, 5)) is None
    trouble = two.looks(range(seconds - 20, seconds + 20, 5))
    assert trouble is not None
    assert (trouble.kind, trouble.ranks) == ("process hung", (0,))
    assert "evaluating" in trouble.what


def test_a_leader_that_hangs_in_a_step_is_named_whatever_it_did_before(two: Ranks) -> None:
    """It has evaluated and saved: its moves are more, and it has come less far all the same."""
    for moves in range(3):
        two.write(0, step=9, in_step=True, moves=50 + moves, part=1, doing="step 9: micro-batch 1 of 2")
        two.write(1, step=9, in_step=True, moves=20 + moves, part=2, doing="step 9: update")
        assert two.watch.look(float(moves)) is None
    trouble = two.looks(range(3, 60))
    assert trouble is not None
    assert trouble.ranks == (0,)


def test_processes_that_are_all_silent_are_all_named(two: Ranks) -> None:
    two.step(3, 1)
    found = [trouble for second in range(40) if (trouble := two.watch.look(float(second))) is not None]
    assert found[0].ranks == (0, 1)
    assert len(found) == 40 - (HANG_SECONDS - ranks.POLL_SECONDS), "not before the limit"


def test_time_that_the_reader_was_stopped_itself_does_not_count(two: Ranks) -> None:
    two.step(3, 1)
    for second in (0.0, 1.0, 5000.0, 5001.0):
        assert two.watch.look(second) is None


def test_a_process_that_never_begins_is_named(two: Ranks) -> None:
    two.write(0, doing="waiting for the others", slow=True)
    seconds = int(ranks.START_SECONDS)
    assert two.looks(range(0, seconds, 5), 0) is None
    trouble = two.looks(range(seconds, seconds + 10), 0)
    assert trouble is not None
    assert (trouble.kind, trouble.ranks) == ("process hung", (1,))
    assert "Rank 1 of 2 has not begun" in trouble.what


def test_nobody_at_all_is_named_too(two: Ranks) -> None:
    trouble = two.looks(range(0, 400, 5))
    assert trouble is not None
    assert trouble.ranks == (0, 1)
    assert "Ranks 0, 1 of 2 have not begun" in trouble.what


def test_how_far_a_process_has_come_in_a_step_does_not_depend_on_what_it_did_before(tmp_path: Path) -> None:
    (tmp_path / ranks.FOLDER).mkdir()
    leader, follower = (Life(tmp_path, Place(rank, 2, rank, 2)) for rank in range(2))
    leader.doing("loading model", slow=True)
    for step in (1, 2):
        for life in (leader, follower):
            life.doing(f"step {step}: micro-batch 1 of 1", step=step, in_step=True)
            life.doing(f"step {step}: update", step=step, in_step=True)
        if step == 1:
            leader.doing("evaluating", slow=True)
            leader.doing("saving", slow=True)
    for life in (leader, follower):
        life.leave()
    first, second = ranks.read_signs(tmp_path, 2)
    assert (first.step, first.part) == (second.step, second.part) == (2, 2)
    assert first.moves > second.moves


def test_a_killed_process_is_the_cause_and_not_those_that_lost_it(
    two: Ranks, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    own = ranks.own_sign(0, 2)
    two.signs[0] = own
    two.step(7, 1)
    process.kill()
    process.wait()
    two.write(0, state=ranks.FAILED, failure=Failure(kind=ranks.PEER, what="Connection closed by peer."))
    trouble = two.watch.look(1.0)
    assert trouble is not None
    assert (trouble.kind, trouble.ranks) == ("process lost", (1,))
    assert f"pid {process.pid}" in trouble.what


def test_nothing_is_lost_once_the_first_process_has_left(two: Ranks, process: subprocess.Popen[bytes]) -> None:
    two.step(7, 1)
    two.write(0, state=ranks.LEFT)
    process.kill()
    process.wait()
    assert two.watch.look(1.0) is None
    assert two.watch.is_over
    assert not two.watch.is_overdue


def test_who_has_not_left_long_after_the_first_is_ended_and_the_run_has_ended_well(tmp_path: Path) -> None:
    (tmp_path / ranks.FOLDER).mkdir()
    crew_of_one = crew.Crew(processes=2, hang_seconds=2.0)
    with subprocess.Popen(["sleep", "60"], process_group=0) as stuck:
        sign = msgspec.structs.replace(ranks.own_sign(0, 2), state=ranks.LEFT, pid=stuck.pid)
        ranks.write_sign(tmp_path, sign)
        start = process_start(stuck.pid) or 0.0
        ranks.write_sign(tmp_path, msgspec.structs.replace(sign, rank=1, state=ranks.WORKING, process_start=start))
        launchers = crew.Launchers(crew_of_one, tmp_path, [stuck])
        assert crew.attend(launchers) is None
        assert stuck.returncode == -9
        assert launchers.exit_code == 0


def test_a_machine_whose_connection_is_lost_is_named(tmp_path: Path) -> None:
    (tmp_path / ranks.FOLDER).mkdir()
    two_machines = crew.Crew(processes=1, hosts=(crew.Host("localhost"), crew.Host("node2")))
    with subprocess.Popen(["sleep", "60"]) as here, subprocess.Popen(["sh", "-c", "exit 255"]) as ssh:
        ssh.wait()
        here.terminate()  # as its ranks would end it
        trouble = crew.attend(crew.Launchers(two_machines, tmp_path, [here, ssh]))
    assert trouble is not None
    assert trouble.kind == "process lost"
    assert "node2" in trouble.what


def failing(kind: str, pieces: int = 1) -> ranks.Trouble:
    failure = Failure(kind=kind, what="It failed.", cause="A cause.", next_step="A step.")
    signs = [msgspec.structs.replace(ranks.own_sign(1, 2), state=ranks.FAILED, failure=failure, pieces=pieces)]
    trouble = ranks.failed(signs)
    assert trouble is not None
    return trouble


def test_restarts_are_bounded_and_counted(tmp_path: Path) -> None:
    lost = ranks.Trouble("process lost", (1,), 4, "Rank 1 is gone.")
    patience = crew.Patience(crew.Crew(processes=2, restarts=2))
    words = []
    for _ in range(2):
        again, recovery = patience.again(lost, tmp_path)
        assert again
        assert recovery is not None
        words.append(recovery.remedy)
    assert "restart 1 of 2" in words[0]
    assert "restart 2 of 2" in words[1]
    assert patience.again(lost, tmp_path) == (False, None)
    assert "started again 2 times" in crew.obituary(lost, patience.crew, tmp_path, 1).cause


def test_memory_that_runs_out_makes_micro_batches_smaller_on_all(tmp_path: Path) -> None:
    patience = crew.Patience(crew.Crew(processes=2, restarts=0))
    for pieces in (1, 2, 4):
        again, recovery = patience.again(failing(ranks.MEMORY, pieces), tmp_path)
        assert again
        assert recovery is not None
        assert recovery.trouble == "out of memory"
        assert f"in {pieces * 2} pieces" in recovery.remedy
        assert patience.pieces == pieces * 2
        assert f"restart {patience.splits} for memory" in recovery.remedy
    assert patience.splits == 3


def test_restarts_for_memory_end_where_no_smaller_pieces_can_be(tmp_path: Path) -> None:
    patience = crew.Patience(crew.Crew(processes=2))
    granted = 0
    while patience.again(failing(ranks.MEMORY), tmp_path)[0]:
        granted += 1
    assert 2**granted == patience.pieces == crew.MOST_PIECES
    end = crew.obituary(failing(ranks.MEMORY), patience.crew, tmp_path, 1)
    assert (end.cause, end.next_step) == ("A cause.", "A step.")


def test_what_would_happen_again_ends_the_run_in_its_own_words(tmp_path: Path) -> None:
    patience = crew.Patience(crew.Crew(processes=2, restarts=3))
    trouble = failing(ranks.ERROR)
    assert patience.again(trouble, tmp_path) == (False, None)
    end = crew.obituary(trouble, patience.crew, tmp_path, 1)
    assert "It failed." in end.what
    assert (end.cause, end.next_step) == ("A cause.", "A step.")


def test_ranks_of_other_machines_are_ended_by_the_name_those_have_for_themselves() -> None:
    here = ranks.own_sign(0, 3)
    there = [msgspec.structs.replace(here, rank=rank, pid=900_000 + rank, host="far away") for rank in (1, 2)]
    assert crew.ending_elsewhere([here]) == ""
    line = crew.ending_elsewhere([here, *there])
    assert str(here.pid) not in line
    told = "uname() { echo 'far away'; }; kill() { echo \"$@\"; }; "
    done = subprocess.run(["sh", "-c", told + line], capture_output=True, text=True, check=True)
    assert done.stdout == "-9 900001 900002\n"
    assert subprocess.run(["sh", "-c", "kill() { echo; }; " + line], capture_output=True, check=True).stdout == b""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "hosts.none"),
        ("# nothing\n", "hosts.none"),
        ("a:x\n", "hosts.bad_line"),
        ("a:0\n", "hosts.bad_line"),
        ("-oProxyCommand=evil\n", "hosts.bad_line"),
        ("two words\n", "hosts.bad_line"),
        ("a:2\nb:4\n", "hosts.unequal"),
        ("localhost\nnode2\n", "hosts.each_its_own"),
        ("node1:2\n127.0.0.1:2\n", "hosts.each_its_own"),
    ],
)
def test_a_bad_list_of_machines_is_refused(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text(text)
    with pytest.raises(EngineError) as refusal:
        crew.read_hosts(path)
    assert refusal.value.code == code


def test_every_machine_gets_a_launcher_that_meets_at_the_first(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("node1:4 # first\n\nnode2:4\n")
    many = crew.Crew(processes=1, hosts=crew.read_hosts(tmp_path / "hosts.txt"))
    assert many.world == 8
    environment = {"SCALER_WIZARD_ATTEMPT": "2", "SCALER_WIZARD_HOME": "/shared", "SECRET": "x"}
    environment |= {"HF_TOKEN": "hf_x", "HUGGING_FACE_HUB_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}
    commands = list(crew.commands(many, tmp_path, environment))
    assert [command[-2] for command in commands] == ["node1", "node2"]
    for number, command in enumerate(commands):
        line = command[-1]
        assert "--nnodes=2" in line
        assert "--nproc-per-node=4" in line
        assert "--rdzv-endpoint=node1:" in line
        assert f"is_host={int(number == 0)}" in line
        assert "SCALER_WIZARD_HOME=/shared" in line
        assert "SECRET" not in line
        assert "hf_x" not in line
        assert "HF_HUB_OFFLINE=1" in line
    endpoint = {word for command in commands for word in command[-1].split() if word.startswith("--rdzv-endpoint")}
    assert len(endpoint) == 1
