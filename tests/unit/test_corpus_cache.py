"""The cache: text is tokenised once, a kill loses one shard at most, damage is noticed, changes are read again."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.corpus import tokenising
from engine.corpus.corpus import Corpus
from engine.corpus.faults import FaultKind
from engine.corpus.prepare import prepare_corpus
from engine.corpus.shards import ShardRecord, read_record
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.jobs import lock
from engine.jobs.spec_stream import SourceSection
from engine.resources import demo_model_dir
from tests.support.corpora import all_ids, document_ids, prepared, stream_of, texts, write_rows
from tests.support.odd_tokenizers import spaced


def folder_of(corpus: Corpus) -> Path:
    return Path(corpus.report.sources[0].folder)


def records(folder: Path) -> list[ShardRecord]:
    found = []
    while (record := read_record(folder, len(found))) is not None:
        found.append(record)
    return found


def written(folder: Path) -> dict[str, int]:
    """When each shard's tokens were written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*.tokens"))}


def test_shards_hold_every_document_once_with_its_end_token(tmp_path: Path) -> None:
    rows = texts(80)
    corpus = prepared(
        {"text": write_rows(tmp_path / "rows.jsonl", rows)}, stream_of(tmp_path / "c", shuffle_documents=0)
    )
    tokenizer = ChatTokenizer.load(demo_model_dir())
    assert tokenizer.eos_id is not None
    wanted = [token for row in rows for token in (*tokenizer.encode(row), tokenizer.eos_id)]
    assert all_ids(corpus) == wanted
    assert corpus.report.sources[0].shards > 3
    assert corpus.report.sources[0].text_bytes == sum(len(row.encode()) for row in rows)


def test_a_long_document_has_the_tokens_of_the_whole(tmp_path: Path) -> None:
    row = " ".join(texts(2000))
    assert len(row) > 1 << 18
    corpus = prepared({"text": write_rows(tmp_path / "rows.jsonl", [row, "short"])}, stream_of(tmp_path / "c"))
    assert tuple(document_ids(corpus.domains[0], 0).tolist()[:-1]) == ChatTokenizer.load(demo_model_dir()).encode(row)


def test_start_tokens_that_a_tokenizer_adds_stand_before_every_document(tmp_path: Path) -> None:
    folder, rows = spaced(tmp_path / "model"), ["hello there", "a town", "hello town"]
    source = SourceSection(name="text", path=str(write_rows(tmp_path / "rows.jsonl", rows)))
    stream = stream_of(tmp_path / "c", shuffle_documents=0, heldout_share=0.4)
    corpus = prepare_corpus([source], stream, folder, None, [])
    tokenizer = ChatTokenizer.load(folder)
    documents = [document_ids(corpus.domains[0], number).tolist() for number in range(len(rows))]
    assert documents == [[*tokenizer.text_ids(row), tokenizer.eos_id] for row in rows]
    assert tokenizer.start_ids
    assert corpus.domains[0].heldout[0].text in rows


def test_a_second_job_finds_the_tokens_and_reads_nothing(tmp_path: Path) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", texts(80))}
    first = prepared(source, stream_of(tmp_path / "c"))
    before = written(folder_of(first))
    second = prepared(source, stream_of(tmp_path / "c"))
    assert second.fingerprint == first.fingerprint
    assert second.report.sources[0].shards_made == 0
    assert written(folder_of(second)) == before


def test_the_manifest_names_sums_tokenizer_and_source(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", texts(20))
    corpus = prepared({"text": path}, stream_of(tmp_path / "c"))
    identity = json.loads((folder_of(corpus) / "source.json").read_text())
    assert identity["state"]["files"] == [[str(path), path.stat().st_size, path.stat().st_mtime_ns]] or identity[
        "state"
    ]["files"] == [{"path": str(path), "size_bytes": path.stat().st_size, "modified_ns": path.stat().st_mtime_ns}]
    assert identity["definition"]["tokenizer_sha256"] == corpus.report.tokenizer_sha256
    record = records(folder_of(corpus))[0]
    assert len(record.tokens_sha256) == len(record.documents_sha256) == 64
    assert record.tokenizer_sha256 == corpus.report.tokenizer_sha256


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove", "record", "documents"])
def test_a_damaged_shard_is_noticed_and_only_it_is_made_again(tmp_path: Path, damage: str) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", [*texts(80), "bad \ud800 row"])}
    first = prepared(source, stream_of(tmp_path / "c"))
    folder, wanted = folder_of(first), all_ids(first)
    before = written(folder)
    tokens = folder / "shard-00002.tokens"
    content = bytearray(tokens.read_bytes())
    content[100] ^= 1
    if damage == "flip":
        tokens.write_bytes(content)
        os.utime(tokens, ns=(before[tokens.name], before[tokens.name]))
    elif damage == "shorten":
        tokens.write_bytes(content[:-2])
    elif damage == "remove":
        tokens.unlink()
    elif damage == "record":
        (folder / "shard-00002.json").write_text('{"tokens": 12')
    else:
        (folder / "shard-00002.documents").write_bytes(b"")
    second = prepared(source, stream_of(tmp_path / "c"))
    assert second.fingerprint == first.fingerprint
    assert all_ids(second) == wanted
    assert second.report.sources[0].shards_redone == 1
    assert second.report.sources[0].faults == first.report.sources[0].faults
    changed = [name for name, when in written(folder).items() if when != before[name]]
    assert changed == [tokens.name]


def test_damage_at_the_end_of_the_cache_is_read_again(tmp_path: Path) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", texts(80))}
    first = prepared(source, stream_of(tmp_path / "c"))
    last = records(folder_of(first))[-1]
    (folder_of(first) / f"shard-{len(records(folder_of(first))) - 1:05}.json").write_text("")
    second = prepared(source, stream_of(tmp_path / "c"))
    assert (second.fingerprint, all_ids(second)) == (first.fingerprint, all_ids(first))
    assert records(folder_of(second))[-1] == last


def test_changed_and_added_files_are_read_again_and_the_others_are_not(tmp_path: Path) -> None:
    for number in range(3):
        write_rows(tmp_path / "rows" / f"{number}.jsonl", texts(40, seed=number))
    source = {"text": tmp_path / "rows"}
    stream = stream_of(tmp_path / "c", shuffle_documents=0)
    first = prepared(source, stream)
    before = written(folder_of(first))
    write_rows(tmp_path / "rows" / "2.jsonl", texts(41, seed=9))
    write_rows(tmp_path / "rows" / "3.jsonl", texts(10, seed=3))
    second = prepared(source, stream)
    kept = [name for name, when in written(folder_of(first)).items() if before.get(name) == when]
    assert len(kept) >= 3
    fresh = prepared(source, stream_of(tmp_path / "fresh", shuffle_documents=0))
    assert all_ids(second) == all_ids(fresh)
    assert second.fingerprint == fresh.fingerprint != first.fingerprint


def test_a_file_that_was_empty_is_read_once_it_has_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows" / "a.jsonl", texts(5))
    (tmp_path / "rows" / "b.jsonl").touch()
    first = prepared({"text": tmp_path / "rows"}, stream_of(tmp_path / "c"))
    assert first.report.sources[0].faults.counts == {FaultKind.EMPTY_FILE: 1}
    write_rows(tmp_path / "rows" / "b.jsonl", texts(5, seed=2))
    second = prepared({"text": tmp_path / "rows"}, stream_of(tmp_path / "c"))
    assert second.report.sources[0].documents == 10
    assert not second.report.sources[0].faults.counts


def test_what_else_is_in_the_cache_changes_nothing_for_a_job(tmp_path: Path) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", texts(300))}
    stream = stream_of(tmp_path / "c")
    first = prepared(source, stream, {"text": 3000})
    assert 3000 <= first.tokens < 5000
    assert not first.report.sources[0].exhausted
    everything = prepared(source, stream)
    assert everything.tokens > 2 * first.tokens
    again = prepared(source, stream, {"text": 3000})
    assert again.fingerprint == first.fingerprint
    assert all_ids(again) == all_ids(first)
    other = prepared(source, stream_of(tmp_path / "other", shard_tokens=1 << 20), {"text": 3000})
    assert other.fingerprint == first.fingerprint


def test_a_source_that_is_not_needed_is_not_even_looked_for(tmp_path: Path) -> None:
    sources = {"text": write_rows(tmp_path / "rows.jsonl", texts(50)), "other": tmp_path / "nowhere"}
    corpus = prepared(sources, stream_of(tmp_path / "c"), {"text": 100, "other": 0})
    assert [domain.name for domain in corpus.domains] == ["text"]


def test_a_data_set_is_cached_gone_on_with_and_used_when_it_cannot_be_reached(tmp_path: Path) -> None:
    for number in range(2):
        write_rows(tmp_path / "data" / f"train-{number}.jsonl", texts(60, seed=number))
    source = {"text": f"hub:{tmp_path / 'data'}"}
    some = prepared(source, stream_of(tmp_path / "c"), {"text": 2000})
    everything = prepared(source, stream_of(tmp_path / "c"))
    assert everything.report.sources[0].documents == 120
    assert all_ids(everything) == all_ids(prepared(source, stream_of(tmp_path / "other")))
    shutil.rmtree(tmp_path / "data")
    assert prepared(source, stream_of(tmp_path / "c"), {"text": 2000}).fingerprint == some.fingerprint
    assert prepared(source, stream_of(tmp_path / "c")).fingerprint == everything.fingerprint
    with pytest.raises(EngineError) as told:
        prepared(source, stream_of(tmp_path / "empty"))
    assert told.value.code == "corpus.hub"


def test_no_more_than_max_tokens_is_read(tmp_path: Path) -> None:
    source = {"text": write_rows(tmp_path / "rows.jsonl", texts(300))}
    corpus = prepared(source, stream_of(tmp_path / "c"), {"text": 10**9}, max_tokens=2000)
    assert 2000 <= corpus.tokens < 2200
    assert prepared(source, stream_of(tmp_path / "c"), max_tokens=2000).fingerprint == corpus.fingerprint


def test_faults_are_counted_once_however_often_a_source_is_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch ends with a fault: what is behind a shard's last document is met again by who reads on there."""
    monkeypatch.setattr(tokenising, "_BATCH_DOCUMENTS", 2)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\nno row\n" for row in texts(40)))
    for tokens in (1, 200, 400):
        part = prepared({"text": path}, stream_of(tmp_path / "c"), {"text": tokens})
        made = records(folder_of(part))
        assert sum(one.faults.documents for one in made) == sum(one.documents for one in made) - 1
    whole = prepared({"text": path}, stream_of(tmp_path / "c")).report.sources[0]
    assert whole.faults.counts == {FaultKind.BAD_JSON: 40}
    assert whole.faults == prepared({"text": path}, stream_of(tmp_path / "fresh")).report.sources[0].faults


def test_a_cached_source_with_faults_is_refused_where_the_policy_says_so(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", texts(50))
    rows.write_bytes(rows.read_bytes() + b'{"text": "open\n')
    stream = stream_of(tmp_path / "c")
    assert prepared({"text": rows}, stream).report.sources[0].faults.counts == {FaultKind.BAD_JSON: 1}
    with pytest.raises(EngineError) as told:
        prepared({"text": rows}, msgspec.structs.replace(stream, bad_input="refuse"))
    assert "line 51" in told.value.cause
    with pytest.raises(EngineError):
        prepared({"text": rows}, msgspec.structs.replace(stream, bad_share=0.01))


def test_a_source_without_any_text_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as told:
        prepared({"text": write_rows(tmp_path / "rows.jsonl", texts(3), field="body")}, stream_of(tmp_path / "c"))
    assert told.value.code == "corpus.no_text"
    assert "no 'text'" in told.value.cause


def test_small_vocabularies_take_two_bytes_per_token(tmp_path: Path) -> None:
    corpus = prepared({"text": write_rows(tmp_path / "rows.jsonl", texts(20))}, stream_of(tmp_path / "c"))
    size = sum(path.stat().st_size for path in folder_of(corpus).glob("shard-*.tokens"))
    assert size == 2 * corpus.report.sources[0].tokens
    assert corpus.domains[0].read(0, 10).ids.dtype == np.uint32


_PREPARE = """
import sys
from tests.support.corpora import prepared, stream_of
from pathlib import Path
corpus = prepared({"text": Path(sys.argv[1])}, stream_of(Path(sys.argv[2])))
print(corpus.fingerprint, corpus.report.sources[0].shards_made)
"""


def process(source: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PREPARE, str(source), str(cache)], stdout=subprocess.PIPE, text=True
    )


def wait_for_shard(cache: Path, name: str, child: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended = child.poll() is not None  # asked first: what it wrote at its end is there when this is true
        for found in cache.glob(f"*/{name}"):
            return found.parent
        assert not ended, "it ended before the shard was there"
        time.sleep(0.002)
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("after", ["shard-00000.json", "shard-00007.json"])
def test_a_kill_loses_the_shard_being_written_and_nothing_else(tmp_path: Path, after: str) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(500))
    child = process(source, tmp_path / "c")
    folder = wait_for_shard(tmp_path / "c", after, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    survived = written(folder)
    whole = {f"shard-{number:05}.tokens" for number in range(len(records(folder)))}
    assert len(survived.keys() - whole) <= 1
    resumed = prepared({"text": source}, stream_of(tmp_path / "c"))
    assert {name: written(folder)[name] for name in whole} == {name: survived[name] for name in whole}
    assert resumed.report.sources[0].shards_made == resumed.report.sources[0].shards - len(whole)
    assert not list(folder.glob(".*.part"))
    uninterrupted = prepared({"text": source}, stream_of(tmp_path / "other"))
    assert resumed.fingerprint == uninterrupted.fingerprint
    assert all_ids(resumed) == all_ids(uninterrupted)
    assert [record.end for record in records(folder)] == [record.end for record in records(folder_of(uninterrupted))]


def test_a_full_disk_says_so_and_what_was_written_before_is_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows" / "1.jsonl", texts(50))
    source, stream = {"text": tmp_path / "rows"}, stream_of(tmp_path / "c")
    folder = folder_of(prepared(source, stream))
    kept = dict(list(written(folder).items())[:-1])  # the last shard knows that there was no other file
    write_rows(tmp_path / "rows" / "2.jsonl", texts(200, seed=2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # no file may grow beyond it, as on a disk without room
    try:
        with pytest.raises(EngineError) as told:
            prepared(source, msgspec.structs.replace(stream, shard_tokens=1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.code == "disk.full"
    assert written(folder) == kept
    assert not list(folder.glob(".*.part"))
    assert all_ids(prepared(source, stream)) == all_ids(prepared(source, stream_of(tmp_path / "other")))


def test_two_processes_share_the_work_instead_of_disturbing_each_other(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(250))
    children = [process(source, tmp_path / "c") for _ in range(2)]
    told = [child.communicate(timeout=100)[0].split() for child in children]
    alone = prepared({"text": source}, stream_of(tmp_path / "other"))
    assert {fingerprint for fingerprint, _ in told} == {alone.fingerprint}
    assert sum(int(made) for _, made in told) == alone.report.sources[0].shards_made


def test_a_job_waits_for_the_one_that_reads_the_same_source(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", texts(20))
    folder = folder_of(prepared({"text": source}, stream_of(tmp_path / "c")))
    held = lock.take(folder / "lock")
    assert held is not None
    child = process(source, tmp_path / "c")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=2)
    os.close(held)
    assert child.wait(timeout=60) == 0
