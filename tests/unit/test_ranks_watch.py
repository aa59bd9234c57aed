"""Whose fault it is when several processes do not get on, and whether they start again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

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
    for second in range(0, 280, 10):
        two.write(0)
        assert two.watch.look(float(second)) is None
    two.write(0)
    assert two.watch.look(320.0) is not None


def test_a_process_that_stays_behind_in_a_step_is_named_though_it_gives_signs(two: Ranks) -> None:
    for second, moves in ((0.0, 1), (2.0, 2), (4.0, 3)):
        two.step(3, moves)
        assert two.watch.look(second) is None
    two.write(0, moves=4, doing="step 3: micro-batch 2 of 2")
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
    for second, moves in ((0.0, 1), (25.0, 2)):  # a micro-batch took 25 s: 60 s are no hang
        two.step(3, moves)
        assert two.watch.look(second) is None
    two.step(3, 2)
    assert two.watch.look(85.0) is None
    two.write(0, in_step=False, moves=3, doing="evaluating")
    for second in range(86, 400, 20):
        two.write(0)
        two.write(1)
        assert two.watch.look(float(second)) is None


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
    endpoint = {word for command in commands for word in command[-1].split() if word.startswith("--rdzv-endpoint")}
    assert len(endpoint) == 1
