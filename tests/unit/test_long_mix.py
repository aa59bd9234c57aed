"""A mix of long and short documents keeps domains, counts everything, and is written whole or not at all."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from engine.data import long_documents
from engine.data.long_budget import MOST_REPEATS, Supply, chosen, proportions, shared
from engine.data.long_documents import MixSource, parse_source, segments_of
from engine.data.long_mix import MixRequest, build_mix
from engine.data.long_pieces import TokenCounter
from engine.data.long_report import MixReport
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.resources import demo_dir

MODEL = demo_dir() / "model"
TARGET = 512
WORDS = [
    "the",
    "key",
    "code",
    "of",
    "stone",
    "river",
    "town",
    "light",
    "home",
    "was",
    "seen",
    "again",
    "then",
    "they",
    "went",
    "by",
]


def prose(rng: random.Random, words: int) -> str:
    lines = (" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(max(words // 12, 1)))
    return "\n".join(lines)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two domains: few long books, many short notes and some long ones."""
    rng = random.Random(5)
    for number in range(8):
        path = tmp_path / "books" / f"part{number % 2}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(rng, 1500))
    rows = [prose(rng, 60) for _ in range(120)] + [prose(rng, 600) for _ in range(10)]
    rng.shuffle(rows)
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return tmp_path


def mixed(library: Path, *names: str, **changes: Any) -> tuple[MixReport, list[dict[str, Any]]]:
    out = library / f"out{len(list(library.glob('out*')))}.jsonl"
    sources = tuple(MixSource(library / name) for name in names or ("books", "notes.jsonl"))
    request = MixRequest(sources=sources, output=out, context=TARGET, model_dir=MODEL, **changes)
    report = build_mix(request)
    return report, [json.loads(line) for line in out.read_text().splitlines()]


def length(row: dict[str, Any]) -> int:
    tokenizer = ChatTokenizer.load(MODEL)
    return len(tokenizer.text_ids(row["text"])) + 1


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_domains_keep_their_proportions_and_long_documents_come_to_their_share() -> None:
    shares = proportions((600.0, 400.0), (1.0, 1.0))
    supplies = [Supply(200.0, 400.0, shares[0]), Supply(300.0, 100.0, shares[1])]
    budgets = shared(500.0, 0.6, supplies)
    assert [budget.long + budget.short for budget in budgets] == pytest.approx([300.0, 200.0])
    assert sum(budget.long for budget in budgets) == pytest.approx(300.0)
    assert all(b.long <= s.long and b.short <= s.short for b, s in zip(budgets, supplies, strict=True))
    assert budgets[0].long / 300 > 200 / 600, "long documents are sampled more than they lie there"


def test_a_domain_without_long_documents_gives_short_ones_and_the_others_make_up_for_it() -> None:
    budgets = shared(100.0, 0.5, [Supply(0.0, 60.0, 0.4), Supply(80.0, 40.0, 0.6)])
    assert (budgets[0].long, budgets[0].short) == pytest.approx((0.0, 40.0))
    assert (budgets[1].long, budgets[1].short) == pytest.approx((50.0, 10.0))


def test_where_there_is_no_short_text_the_rest_is_long() -> None:
    assert shared(100.0, 0.6, [Supply(500.0, 0.0, 1.0)])[0].long == pytest.approx(100.0)


def test_whole_documents_are_chosen_up_to_the_budget_and_no_more_than_four_times() -> None:
    tokens = [100] * 10
    once = chosen(tokens, range(10), 450.0, random.Random(1))
    assert sum(once) in (4, 5)
    assert max(once) == 1
    assert chosen(tokens, range(10), 450.0, random.Random(1)) == once
    assert sorted(chosen(tokens, range(10), 2500.0, random.Random(1))) == [2] * 5 + [3] * 5
    assert set(chosen(tokens, range(10), 1e9, random.Random(1))) == {MOST_REPEATS}
    assert list(chosen(tokens, (3,), 100.0, random.Random(1))) == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


# ── documents and pieces ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("limit", [17, 100, 511])
def test_pieces_joined_are_the_document_and_none_is_longer_than_the_limit(limit: int) -> None:
    counter = TokenCounter(ChatTokenizer.load(MODEL))
    text = prose(random.Random(3), 900) + " grüße 你好 \U0001f600 " * 40
    for segments in ([text], [text[:700], text[700:701], text[701:]]):
        pieces = list(counter.pieces(iter(segments), limit))
        assert "".join(piece.text for piece in pieces) == text
        assert all(piece.tokens == counter.count(piece.text) <= limit for piece in pieces)
        assert all(piece.tokens > 0.8 * limit for piece in pieces[:-1]), "pieces are full"


def test_segments_end_behind_lines_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_documents, "SEGMENT_CHARACTERS", 50)
    text = "one two three\n" * 20 + "x" * 200 + " end"
    pieces = segments_of(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 50
    assert pieces[0].endswith("\n")


def test_a_weight_follows_the_last_colon(tmp_path: Path) -> None:
    (tmp_path / "a:1").write_text("text")
    assert parse_source(f"{tmp_path}:2.5") == MixSource(tmp_path, 2.5)
    assert parse_source(str(tmp_path / "a:1")).weight == 1.0, "a file of that very name"
    for bad in ("0", "-1", "x"):
        with pytest.raises(EngineError, match="no weight"):
            parse_source(f"{tmp_path}:{bad}")
    with pytest.raises(EngineError, match="no file"):
        parse_source(str(tmp_path / "none"))


# ── the mix ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_mix_has_the_long_share_and_its_rows_are_counted_as_training_counts_them(library: Path) -> None:
    report, rows = mixed(library)
    lengths = [length(row) for row in rows]
    assert report.rows == len(rows)
    assert report.tokens == sum(lengths)
    assert max(lengths) <= TARGET
    long = sum(tokens for tokens in lengths if tokens >= report.long_from)
    assert report.long_share == pytest.approx(long / sum(lengths))
    assert report.long_share == pytest.approx(0.6, abs=0.12)
    assert [domain.share_after for domain in report.domains] == pytest.approx(
        [domain.share_before for domain in report.domains], abs=0.12
    )


def test_no_document_is_cut_or_left_out_without_a_count(library: Path) -> None:
    report, rows = mixed(library)
    pieces = [row for row in rows if "piece" in row["meta"]]
    assert report.cut.pieces == len(pieces) > 0
    assert report.cut.documents == len({(row["meta"]["file"], row["meta"]["line"]) for row in pieces})
    found = sum(domain.documents for domain in report.domains)
    assert report.documents + report.unused_documents == found
    for domain in report.domains:
        assert sum(one.count for one in domain.before) == domain.documents
        assert sum(one.tokens for one in domain.before) == domain.tokens
        assert sum(one.count for one in domain.after) == domain.rows
        assert sum(one.tokens for one in domain.after) == domain.used_tokens


def test_equal_seeds_give_equal_files_and_other_seeds_other_documents(library: Path) -> None:
    first, second = mixed(library, tokens=6000)[1], mixed(library, tokens=6000)[1]
    assert first == second
    assert mixed(library, tokens=6000, seed=3)[1] != first


def test_short_text_of_its_own_fills_the_rest_and_may_repeat(library: Path) -> None:
    chats = library / "chats.jsonl"
    turns = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day to you."}]}
    chats.write_text(json.dumps(turns) + "\n" + json.dumps({"text": "the river " * 30}) + "\n")
    report, rows = mixed(library, "books", short=(MixSource(chats),))
    assert {domain.role for domain in report.domains} == {"long", "short"}
    assert [row["messages"] for row in rows if "messages" in row] == [turns["messages"]] * MOST_REPEATS
    assert report.domains[1].repeated_documents == 2
    assert "too little short text" in " ".join(report.warnings)


def test_duplicates_broken_lines_and_unreadable_files_are_located(library: Path) -> None:
    books = library / "books"
    (books / "again.txt").write_text((books / "part0" / "0.txt").read_text())
    (books / "broken.txt").write_bytes(b"abc \xff\xfe def")
    (books / "picture.bin").write_bytes(b"\0\1\2" * 30)
    (books / ".hidden").write_text("left out")
    with (library / "notes.jsonl").open("a") as file:
        file.write('{"text": 3}\n{not json\n')
    report, rows = mixed(library)
    reasons = {item.reason: item for item in report.dropped}
    assert report.duplicates == 1
    assert "not valid JSON" in reasons
    assert reasons["not valid JSON"].examples[0].line == 132
    assert reasons["a turn or a field is not text"].examples[0].file.endswith("notes.jsonl")
    assert reasons["not valid UTF-8 text"].examples[0].file.endswith("broken.txt")
    assert any("picture.bin" in item.examples[0].file for item in report.dropped)
    assert not any("left out" in row.get("text", "") for row in rows)


def test_more_than_there_is_repeats_at_most_four_times_and_says_so(library: Path) -> None:
    report, rows = mixed(library, "books", tokens=10_000_000)
    assert len(rows) == MOST_REPEATS * len({row["text"] for row in rows})
    assert any("at most 4 times" in warning for warning in report.warnings)


def test_a_long_text_file_never_lies_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_documents, "SEGMENT_CHARACTERS", 1 << 12)
    line = prose(random.Random(2), 12) + "\n"
    peaks, sizes = [], []
    for lines in (1000, 5000):
        book = tmp_path / f"book{lines}.txt"
        book.write_text(line * lines)
        tracemalloc.start()
        report = build_mix(MixRequest((MixSource(book),), tmp_path / f"out{lines}.jsonl", TARGET, MODEL))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(book.stat().st_size)
        assert report.cut.documents == 1
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4, f"{peaks} bytes of Python objects for files of {sizes}"


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────
def refused(library: Path, *names: str, **changes: Any) -> EngineError:
    before = set(library.iterdir())
    with pytest.raises(EngineError) as caught:
        mixed(library, *names, **changes)
    assert set(library.iterdir()) == before, "nothing is left behind"
    return caught.value


def test_documents_too_short_for_the_target_are_refused_with_the_ways_out(library: Path) -> None:
    (library / "small.jsonl").write_text(json.dumps({"text": "the river by the town"}) + "\n")
    error = refused(library, "small.jsonl")
    assert error.code == "mix.too_short"
    assert "pose" in error.next_step
    assert "--context" in error.next_step


def test_documents_shorter_than_the_target_are_mixed_with_a_warning(library: Path) -> None:
    (library / "middle.jsonl").write_text(json.dumps({"text": prose(random.Random(1), 230)}) + "\n")
    report, _ = mixed(library, "middle.jsonl")
    assert report.domains[0].longest < TARGET
    assert any("nothing shows the model" in warning for warning in report.warnings)


def test_empty_sources_and_impossible_shares_are_refused(library: Path) -> None:
    (library / "none").mkdir()
    assert refused(library, "none").code == "mix.no_documents"
    assert refused(library, long_share=0.0).code == "mix.share"
    assert refused(library, long_share=1.5).code == "mix.share"


def test_a_model_without_a_tokenizer_is_refused(library: Path) -> None:
    (library / "model").mkdir()
    out = library / "x.jsonl"
    with pytest.raises(EngineError, match="tokenizer"):
        build_mix(MixRequest((MixSource(library / "books"),), out, TARGET, library / "model"))
    assert not out.exists()


def test_an_existing_file_is_never_written_over(library: Path) -> None:
    out = library / "mine.jsonl"
    out.write_text("mine")
    with pytest.raises(EngineError, match="left as it is"):
        build_mix(MixRequest((MixSource(library / "books"),), out, TARGET, MODEL))
    assert out.read_text() == "mine"


def test_a_source_that_changes_meanwhile_leaves_no_file(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.data import long_mix

    seen = []

    def shared_and_changed(*given: Any) -> Any:
        seen.append((library / "notes.jsonl").unlink())
        (library / "notes.jsonl").write_text('{"text": "other"}\n')
        return shared(*given)

    monkeypatch.setattr(long_mix, "shared", shared_and_changed)
    with pytest.raises(EngineError, match="changed while it was read"):
        mixed(library, "notes.jsonl")
    assert seen
    assert not list(library.glob("*out*"))
