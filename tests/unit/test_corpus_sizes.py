"""How many tokens sources hold, told from a sample, and counted once they are cached."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.corpus import sizes
from engine.corpus.prepare import prepare_corpus
from engine.corpus.sizes import amount_of, amounts_of
from engine.errors import EngineError
from engine.jobs.spec import JobSpec, SourceSection, StageSection, StreamSection, Task
from engine.resources import demo_dir
from engine.schedule.amounts import AmountOrigin

MODEL = demo_dir() / "model"
WORDS = "the quick brown fox jumps over a lazy dog and other things happened to red green houses"


def documents(count: int) -> list[str]:
    random.seed(4)
    return [" ".join(random.choices(WORDS.split(), k=random.randint(5, 200))) for _ in range(count)]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "txt", "parquet", "folder"])
def test_a_sample_tells_the_tokens_of_every_form_and_the_cache_counts_them(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    texts, path = documents(600), tmp_path / f"text.{form}"
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    if form == "jsonl":
        path.write_text(lines)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif form == "txt":
        path.write_text("\n\n".join(texts))
    elif form == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        path.mkdir()
        for number in range(6):
            (path / f"{number}.jsonl").write_text("\n".join(lines.splitlines()[number * 100 : number * 100 + 100]))
    source = SourceSection(name="web", path=str(path))
    stream = StreamSection(deduplicate="off", decontaminate=False, heldout_share=0.0)
    sampled = amount_of(source, stream, MODEL)
    assert sampled.origin is AmountOrigin.SAMPLE
    true = prepare_corpus([source], stream, MODEL, None, []).domains[0].tokens
    assert sampled.low <= true <= sampled.high
    assert sampled.likely == pytest.approx(true, rel=0.1)
    if form != "txt":  # text files are cut into documents of their own
        assert sampled.documents == pytest.approx(600, rel=0.15)
    counted = amount_of(source, stream, MODEL)
    assert (counted.origin, counted.low, counted.likely, counted.high) == (AmountOrigin.COUNTED, true, true, true)
    path.touch()
    if form == "jsonl":
        path.write_text(lines + "\n" + lines)
        assert amount_of(source, stream, MODEL).origin is AmountOrigin.SAMPLE, "what changed is not counted"


@pytest.mark.parametrize("deduplicate", ["exact", "near", "off"])
def test_what_is_cached_is_counted_without_duplicates_and_what_is_held_out(
    deduplicate: Literal["exact", "near", "off"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    texts = documents(300)
    rows = {"twice": [*texts[:200], *texts[:200]], "later": texts[150:], "unread": texts[:90]}
    for name, own in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    sources = tuple(SourceSection(name=name, path=str(tmp_path / f"{name}.jsonl")) for name in rows)
    stream = StreamSection(deduplicate=deduplicate, heldout_share=0.05)
    read = prepare_corpus(sources[:2], stream, MODEL, None, [])
    prepare_corpus(sources[2:], stream, MODEL, None, [])
    spec = JobSpec(
        task=Task.FULL,
        sources=sources,
        stream=stream,
        stages=(StageSection(max_tokens=1 << 40, weights={"twice": 1.0, "later": 1.0}),),
    )
    found = {one.name: one for one in amounts_of(spec, MODEL)}
    assert {one.origin for one in found.values()} == {AmountOrigin.COUNTED}
    for report in read.report.sources:
        one = found[report.name]
        assert (one.likely, one.documents) == (report.kept.tokens, report.kept.documents)
        assert one.low < one.likely if deduplicate == "near" else one.low == one.likely
    assert found["later"].documents < 100 or deduplicate == "off", "the first source has some of them"
    assert found["unread"].documents > 80, "it is not compared with sources that are read"
    monkeypatch.setattr(sizes, "COMPARED", 100)
    (many, *_) = amounts_of(spec, MODEL)
    assert (many.documents, many.low < many.likely) == (400, True), "too many to compare: a range"


def test_a_cached_source_of_copies_alone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    texts = "".join(json.dumps({"text": text}) + "\n" for text in documents(50))
    sources = tuple(SourceSection(name=name, path=str(tmp_path / f"{name}.jsonl")) for name in ("one", "copy"))
    for source in sources:
        Path(source.path).write_text(texts)
        prepare_corpus([source], StreamSection(), MODEL, None, [])
    one, copy = amounts_of(JobSpec(task=Task.FULL, sources=sources), MODEL)
    assert (one.likely > 0, copy.likely) == (True, 0)
    assert copy.unreadable == "no document that would be trained on"


def test_without_a_tokenizer_bytes_have_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents(100)))
    found = amount_of(SourceSection(name="web", path=str(tmp_path / "a.txt")), StreamSection(), None)
    assert found.origin is AmountOrigin.SIZE
    assert found.low < found.likely < found.high


def test_a_limit_of_the_source_is_a_limit_of_its_amount(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents(100)))
    source = SourceSection(name="web", path=str(tmp_path / "a.txt"), max_tokens=500)
    found = amount_of(source, StreamSection(), MODEL)
    assert (found.low, found.likely, found.high) == (500, 500, 500)


def test_text_that_cannot_be_read_has_a_reason_and_no_amount(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "no text here"}\n')
    found = amount_of(SourceSection(name="web", path=str(tmp_path / "a.jsonl")), StreamSection(), MODEL)
    assert (found.origin, found.likely) == (AmountOrigin.UNKNOWN, 0)
    assert "a.jsonl" in found.unreadable


def test_a_source_that_is_not_there_is_refused_with_its_key(tmp_path: Path) -> None:
    sources = (
        SourceSection(name="hub", path="hub:a/b"),
        SourceSection(name="web", path=str(tmp_path / "nowhere")),
    )
    with pytest.raises(EngineError) as refused:
        amounts_of(JobSpec(task=Task.FULL, sources=sources), MODEL)
    assert refused.value.key == "sources[2].path"
