"""The worker process from start to end, on a tiny model."""

from __future__ import annotations

from tests.train.conftest import RunWorker, SpecMaker


def test_a_qlora_run_goes_from_spec_to_card(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    done = run_worker(make_spec())
    print(done.log, done.events)
    assert done.end.outcome == "finished", done.end
    assert done.exit_code == 0
