"""A teacher's logits on disk: they say what the teacher says, survive kills and damage, and are made once."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.data.load import prepare
from engine.data.rows import EncodedRow
from engine.distill.cache_files import (
    MANIFEST,
    CacheOrder,
    data_sha256_of,
    parts_of,
    segments_of_rows,
    shard_name,
    staging_of,
    teacher_sha256,
)
from engine.errors import EngineError
from engine.jobs.spec import DataSection

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("logit_cache")]
K = 16
SMALL_SHARDS = 2 << 10


@dataclass
class Asked:
    """A real model as a teacher, and how often it was loaded and asked."""

    model: Any
    head: Any
    loads: int = 0
    rows: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Asked]:
        self.loads += 1
        yield self

    def at(self, wanted: Any) -> Any:
        import torch

        self.rows.append(int((wanted.position_ids == 0).sum()))
        with torch.no_grad():
            logits = self.head.logits_of(self.model, wanted)
        return _View(logits)


@dataclass
class _View:
    logits: Any
    hidden: tuple[Any, ...] = ()

    def chunk(self, first: int, last: int) -> Any:
        from engine.distill.knowledge import FullLogits

        return FullLogits(self.logits[first:last])


def asked(folder: Path) -> Asked:
    import torch
    from transformers import AutoModelForCausalLM

    from engine.evaluation.head import SelectiveHead

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Asked(model, SelectiveHead(model))


def rows_of(model: Path, data: Path) -> list[EncodedRow]:
    section = DataSection(train=str(data / "train.jsonl"), heldout=str(data / "heldout.jsonl"), max_length=96)
    return list(prepare(section, model).train)


def order_of(rows: Sequence[EncodedRow], model: Path, **changes: Any) -> CacheOrder:
    import msgspec

    order = CacheOrder(
        data_sha256=data_sha256_of(segments_of_rows(rows)),
        teacher="tiny",
        teacher_sha256=teacher_sha256(model),
        form="float32",
        k=K,
        vocabulary=380,
    )
    return msgspec.structs.replace(order, **changes)


@pytest.fixture(scope="module")
def rows(tiny_model: Path, tiny_data: Path) -> list[EncodedRow]:
    return rows_of(tiny_model, tiny_data)


@pytest.fixture(scope="module")
def teacher(tiny_model: Path) -> Asked:
    return asked(tiny_model)


def silent(_done: int, _total: int, _words: str) -> None:
    pass


def made(
    rows: Sequence[EncodedRow], order: CacheOrder, home: Path, teacher: Asked, temperature: float = 1.0
) -> tuple[Any, Any]:
    from engine.distill.cache import cached_knowledge

    segments = segments_of_rows(rows)
    return cached_knowledge(order, segments, home, teacher.loaded, temperature, silent, shard_bytes=SMALL_SHARDS)


@pytest.fixture(scope="module")
def complete(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The home of a complete cache, not to be changed."""
    home = tmp_path_factory.mktemp("logits")
    made(rows, order_of(rows, tiny_model), home, teacher)
    return home


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 5.0])
def test_what_is_read_is_what_the_teacher_says_in_any_packing_at_any_temperature(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, complete: Path, temperature: float
) -> None:
    import torch

    from engine.data.packing import pack
    from engine.distill.knowledge import top_of
    from engine.evaluation.head import Wanted
    from engine.train.batches import Collator, SequenceDataset

    knowledge, facts = made(rows, order_of(rows, tiny_model), complete, teacher, temperature)
    dataset = SequenceDataset(pack(rows[::-1][:20], 96))
    batch = Collator(0)([dataset[0], dataset[2], dataset[1]])
    wanted = Wanted(batch["input_ids"], batch["position_ids"], batch["positions"])
    count = len(wanted.positions)
    logits = teacher.at(wanted).chunk(0, count).logits[:, :380]
    expected = top_of(logits, K, temperature)
    view = knowledge.at(wanted)
    found = [view.chunk(0, 5), view.chunk(5, count)]
    assert facts.tokens == sum(sum(row.trained[1:]) for row in {row.input_ids: row for row in rows}.values())
    first = 0
    for part in found:
        here = slice(first, first + len(part.ids))
        first = here.stop
        whole = expected.log_probs[here].exp()
        assert (part.log_probs.exp() - whole).abs().max() < 0.01
        assert (part.log_probs - expected.log_probs[here]).abs().max() < 0.03
        assert (part.missing_log_mass - expected.missing_log_mass[here]).abs().max() < 0.03
        total = part.log_probs.exp().sum(-1) + part.missing_log_mass.exp()
        assert (total - 1).abs().max() < 1e-5
        named = torch.log_softmax(logits[here] / temperature, -1).gather(-1, part.ids)
        assert (part.log_probs - named).abs().max() < 0.03
    assert first == count


def test_a_complete_cache_is_found_by_content_and_needs_no_teacher(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, complete: Path
) -> None:
    before = teacher.loads
    _, facts = made(rows, order_of(rows, tiny_model, teacher="../another/spelling/tiny"), complete, teacher)
    assert (teacher.loads, facts.made_shards) == (before, 0)
    assert facts.shards > 2
    names = {order_of(rows, tiny_model).folder_name}
    names |= {order_of(rows[1:], tiny_model).folder_name, order_of(rows, tiny_model, k=K + 1).folder_name}
    names |= {order_of(rows, tiny_model, form="nf4").folder_name, order_of(rows, tiny_model, vocabulary=9).folder_name}
    assert len(names) == 5


def test_a_teacher_is_known_by_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert teacher_sha256(copy) == teacher_sha256(tiny_model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert teacher_sha256(copy) != teacher_sha256(tiny_model)


def test_a_damaged_shard_is_noticed_and_only_it_is_made_again(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, tmp_path: Path
) -> None:
    order = order_of(rows, tiny_model)
    _, first = made(rows, order, tmp_path, teacher)
    bad = first.folder / shard_name(1)
    sound = bad.read_bytes()
    bad.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    kept = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*.safetensors") if path != bad}
    knowledge, again = made(rows, order, tmp_path, teacher)
    assert again.made_shards == 1
    assert bad.read_bytes() == sound
    assert knowledge.order == order
    assert {name: (first.folder / name).stat().st_mtime_ns for name in kept} == kept


def test_a_row_that_was_cut_otherwise_is_refused(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, complete: Path
) -> None:
    from engine.distill.cache_writer import wanted_of

    knowledge, _ = made(rows, order_of(rows, tiny_model), complete, teacher)
    segment = segments_of_rows(rows)[0]
    shorter = type(segment)(segment.ids, segment.wanted[:-1])
    with pytest.raises(EngineError) as caught:
        knowledge.at(wanted_of([shorter]))
    assert caught.value.code == "distill.not_cached"


SCRIPT = """
import sys
from pathlib import Path
from tests.train import test_logit_cache as here
model, data, home = map(Path, sys.argv[1:4])
rows = here.rows_of(model, data)
def tell(done, total, words):
    print(done, total, flush=True)
    if done >= int(sys.argv[4]):
        sys.stdin.readline()
from engine.distill.cache import cached_knowledge
cached_knowledge(here.order_of(rows, model), here.segments_of_rows(rows), home, here.asked(model).loaded, 1.0, tell,
                 shard_bytes=here.SMALL_SHARDS)
"""


@pytest.fixture
def spawned(tiny_model: Path, tiny_data: Path) -> Iterator[Callable[[Path, int], subprocess.Popen[str]]]:
    processes = []

    def spawn(home: Path, stop_at: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(tiny_model), str(tiny_data), str(home)]
        process = subprocess.Popen(
            [*command, str(stop_at)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        processes.append(process)
        return process

    yield spawn
    for process in processes:
        process.kill()
        process.communicate()


def test_a_kill_leaves_nothing_under_the_final_name_and_costs_one_shard(
    rows: list[EncodedRow],
    teacher: Asked,
    tiny_model: Path,
    tmp_path: Path,
    spawned: Callable[..., subprocess.Popen[str]],
) -> None:
    order = order_of(rows, tiny_model)
    parts = parts_of(segments_of_rows(rows), K, SMALL_SHARDS)
    finished = sum(len(segment.wanted) for part in parts[:2] for segment in part)
    process = spawned(tmp_path, finished + 1)
    assert process.stdout is not None
    done = 0
    while done <= finished:
        done = int(process.stdout.readline().split()[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    staging = staging_of(tmp_path, order)
    assert not (tmp_path / order.folder_name).exists()
    assert not (staging / MANIFEST).exists()
    whole = sorted(path.name for path in staging.glob("logits-*.safetensors"))
    assert whole[:2] == [shard_name(0), shard_name(1)]
    assert len(whole) < len(parts)
    _, facts = made(rows, order, tmp_path, teacher)
    assert facts.made_shards == len(parts) - len(whole)
    assert facts.folder.is_dir()
    assert not staging.exists()


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """A disk on which files cannot grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_says_how_much_is_missing_and_what_was_whole_is_kept(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, tmp_path: Path
) -> None:
    order = order_of(rows, tiny_model)
    _, whole = made(rows, order, tmp_path, teacher)
    (whole.folder / shard_name(2)).unlink()
    with files_end_at(2048), pytest.raises(EngineError) as caught:
        made(rows, order, tmp_path, teacher)
    assert caught.value.code == "disk.full"
    assert "are missing" in caught.value.what
    assert not whole.folder.exists()
    staging = staging_of(tmp_path, order)
    assert not list(staging.glob("*.part"))
    assert len(list(staging.glob("logits-*.safetensors"))) == whole.shards - 1
    assert made(rows, order, tmp_path, teacher)[1].made_shards == 1


def test_too_small_a_disk_is_refused_before_the_teacher_is_loaded(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real, before = shutil.disk_usage(tmp_path), teacher.loads
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: real._replace(free=17 << 20))
    made(rows, order_of(rows, tiny_model), tmp_path / "enough", teacher)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: real._replace(free=1 << 20))
    with pytest.raises(EngineError) as caught:
        made(rows, order_of(rows, tiny_model), tmp_path / "full", teacher)
    assert caught.value.code == "disk.full"
    assert "are missing" in caught.value.what
    assert teacher.loads == before + 1


def test_the_time_is_that_of_all_shards_whichever_attempt_computed_them(
    rows: list[EncodedRow], teacher: Asked, tiny_model: Path, tmp_path: Path
) -> None:
    from engine.distill.cache import cached_knowledge
    from engine.distill.cache_files import read_manifest, read_record, staging_of

    order, segments = order_of(rows, tiny_model), segments_of_rows(rows)

    def stopping(done: int, total: int, _words: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_knowledge(order, segments, tmp_path, teacher.loaded, 1.0, stopping, shard_bytes=SMALL_SHARDS)
    first = read_record(staging_of(tmp_path, order), 0)
    assert first is not None
    assert first.seconds > 0
    _, facts = made(rows, order, tmp_path, teacher)
    manifest = read_manifest(facts.folder)
    assert manifest is not None
    assert manifest.shards[0] == first
    assert 0 < facts.made_shards < facts.shards
    assert facts.seconds == pytest.approx(sum(shard.seconds for shard in manifest.shards))
