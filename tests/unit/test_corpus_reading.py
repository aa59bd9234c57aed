"""Readers: every form and packing gives the same documents, and what is broken is counted and located."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from engine.corpus.documents import Document, Limits
from engine.corpus.faults import BadInputPolicy, Fault, FaultKind, FaultTally
from engine.corpus.files import source_files
from engine.corpus.hub import HubText
from engine.corpus.reading import read_files
from engine.corpus.shards import Cursor
from engine.errors import EngineError
from engine.jobs.spec_stream import SourceSection
from tests.support.corpora import texts, write_rows

LIMITS = Limits(1 << 20, 1 << 10)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(
    path: Path, *, field: str = "text", limits: Limits = LIMITS, begin: Cursor | None = None
) -> list[Document | Fault]:
    return list(read_files(source_files("text", str(path)), field, limits, begin or Cursor()))


def found_texts(path: Path, **options: object) -> list[str]:
    return [one.text for one in read(path, **options) if isinstance(one, Document)]  # type: ignore[arg-type]


def faults(path: Path, **options: object) -> list[Fault]:
    return [one for one in read(path, **options) if isinstance(one, Fault)]  # type: ignore[arg-type]


# ── forms ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("ending", PACKINGS)
def test_packed_and_plain_rows_are_the_same_documents(tmp_path: Path, ending: str) -> None:
    rows = texts(50)
    plain = write_rows(tmp_path / "rows.jsonl", rows).read_bytes()
    packed = tmp_path / "in" / f"rows.jsonl{ending}"
    packed.parent.mkdir()
    packed.write_bytes(PACKINGS[ending](plain))
    assert found_texts(packed) == rows


@pytest.mark.parametrize("ending", PACKINGS)
def test_reading_goes_on_behind_any_document_of_any_packing(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"rows.jsonl{ending}").write_bytes(
        PACKINGS[ending](write_rows(tmp_path / ".rows", texts(30)).read_bytes())
    )
    (tmp_path / f"text.txt{ending}").write_bytes(PACKINGS[ending]("\n\n".join(texts(60, longest=99)).encode()))
    everything = read(tmp_path)
    assert len(everything) > 40
    for number, one in enumerate(everything):
        assert isinstance(one, Document)
        assert read(tmp_path, begin=one.after) == everything[number + 1 :]


def test_parquet_rows_are_documents_and_any_row_can_be_gone_on_from(tmp_path: Path) -> None:
    rows = texts(100)
    table = pyarrow.table({"other": list(range(100)), "text": rows})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=17)
    everything = read(tmp_path)
    assert [one.text for one in everything if isinstance(one, Document)] == rows
    for number in (0, 16, 17, 50, 98):
        one = everything[number]
        assert isinstance(one, Document)
        assert read(tmp_path, begin=one.after) == everything[number + 1 :]


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary()])
def test_every_text_column_of_parquet_is_read(tmp_path: Path, kind: pyarrow.DataType) -> None:
    column = pyarrow.array([text.encode() if kind == pyarrow.binary() else text for text in texts(5)], kind)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    assert found_texts(tmp_path) == texts(5)


def test_a_dictionary_column_of_parquet_is_read(tmp_path: Path) -> None:
    column = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    assert found_texts(tmp_path) == ["a", "b", "a"]


def test_a_long_text_file_becomes_documents_that_end_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = texts(40, longest=99)
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    found = found_texts(tmp_path)
    assert 1 < len(found) < 40
    assert "\n".join(found) == "\n\n".join(paragraphs)
    assert all(text.endswith("\n") for text in found[:-1])
    assert found_texts(tmp_path, limits=Limits(1 << 20, 0)) == ["\n\n".join(paragraphs)]


def test_the_field_is_the_users_choice_and_other_keys_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": NaN, "body": "one"}\n{"body": "two", "text": 3}\n')
    assert found_texts(tmp_path, field="body") == ["one", "two"]


def test_folders_and_patterns_leave_out_hidden_files_and_notes_beside_data(tmp_path: Path) -> None:
    write_rows(tmp_path / "b" / "two.jsonl", ["2"])
    write_rows(tmp_path / "a" / "one.jsonl", ["1"])
    write_rows(tmp_path / ".cache" / "no.jsonl", ["no"])
    (tmp_path / "README.md").write_text("# no")
    assert found_texts(tmp_path) == ["1", "2"]
    assert found_texts(tmp_path / "*" / "t*.jsonl") == ["2"]
    with pytest.raises(EngineError) as told:
        read(tmp_path / "none*")
    assert told.value.code == "corpus.not_found"


# ── what is broken ────────────────────────────────────────────────────────────────────────────────────────────────
def test_broken_rows_are_located_and_cost_only_themselves(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "bad \xff byte"}',
        b'{"text": "open',
        b'{"body": "other"}',
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b"[1]",
        b'{"text": " "}',
        b"",
        b'{"text": "last"}',
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    assert found_texts(tmp_path) == ["good", "last"]
    found = faults(tmp_path)
    assert [(fault.line, fault.kind) for fault in found] == [
        (2, FaultKind.BAD_UTF8),
        (3, FaultKind.BAD_JSON),
        (4, FaultKind.NO_FIELD),
        (5, FaultKind.NOT_TEXT),
        (6, FaultKind.BAD_UTF8),
        (7, FaultKind.BAD_JSON),
        (8, FaultKind.BLANK),
    ]
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert content[found[0].byte - 1] == 0xFF
    assert "rows.jsonl, line 2, byte" in found[0].words


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_half_a_packed_file_gives_what_is_whole_and_a_located_fault(tmp_path: Path, ending: str) -> None:
    rows = [os.urandom(300).hex() for _ in range(800)]
    packed = PACKINGS[ending](write_rows(tmp_path / ".rows", rows).read_bytes())
    (tmp_path / f"rows.jsonl{ending}").write_bytes(packed[: len(packed) // 2])
    found = found_texts(tmp_path)
    assert found == rows[: len(found)]
    (fault,) = faults(tmp_path)
    assert fault.kind is FaultKind.TRUNCATED
    assert fault.line == len(found) + 1
    assert ending == ".bz2" or len(found) > 200


def test_a_damaged_packed_file_is_told_from_one_that_ends_early(tmp_path: Path) -> None:
    packed = bytearray(
        gzip.compress(write_rows(tmp_path / ".rows", [os.urandom(99).hex() for _ in range(900)]).read_bytes())
    )
    packed[len(packed) // 2] ^= 0xFF
    packed[len(packed) // 2 + 1] ^= 0xFF
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    kinds = {fault.kind for fault in faults(tmp_path)}
    assert FaultKind.BROKEN_FILE in kinds


def test_parquet_without_the_column_says_which_there_are_and_counts_its_rows(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"title": ["a", "b"], "body": ["c", "d"]}), tmp_path / "rows.parquet")
    (fault,) = faults(tmp_path)
    assert (fault.kind, fault.documents) == (FaultKind.NO_COLUMN, 2)
    assert "title, body" in fault.words


def test_bad_values_in_parquet_cost_only_their_rows(tmp_path: Path) -> None:
    column = pyarrow.array([b"one", b"\xff", None, b"x" * 3000, b"two"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    limits = Limits(2048, 0)
    assert found_texts(tmp_path, limits=limits) == ["one", "two"]
    assert [(fault.row, fault.kind) for fault in faults(tmp_path, limits=limits)] == [
        (2, FaultKind.BAD_UTF8),
        (3, FaultKind.NOT_TEXT),
        (4, FaultKind.TOO_LONG),
    ]


def test_half_a_parquet_file_and_a_column_of_numbers_are_faults(tmp_path: Path) -> None:
    whole = tmp_path / "numbers.parquet"
    parquet.write_table(pyarrow.table({"text": [1, 2, 3]}), whole)
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[:200])
    assert [fault.kind for fault in faults(tmp_path)] == [FaultKind.BROKEN_FILE, FaultKind.NOT_TEXT]


def test_empty_binary_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    (tmp_path / "c.json").write_text('[{"text": "a"},\n{"text": "b"}]')
    (tmp_path / "d.txt").write_text("text".encode("utf-16").decode("latin-1"), encoding="latin-1")
    found = faults(tmp_path)
    assert [fault.kind for fault in found] == [FaultKind.EMPTY_FILE, *[FaultKind.UNKNOWN_FORMAT] * 3]
    assert found[0].documents == 0
    assert ["array" in found[2].words, "UTF-16" in found[3].words] == [True, True]


def test_bad_bytes_in_text_cost_the_piece_they_are_in(tmp_path: Path) -> None:
    parts = [text.encode() for text in texts(60, longest=99)]
    parts[30] += b"\xc3("
    content = b"\xef\xbb\xbf" + b"\n\n".join(parts)
    (tmp_path / "book.txt").write_bytes(content)
    (fault,) = faults(tmp_path)
    assert fault.kind is FaultKind.BAD_UTF8
    assert fault.line == 61
    assert content[fault.byte - 1 : fault.byte + 1] == b"\xc3("
    assert len(found_texts(tmp_path)) > 5


_PEAK = """
import sys
from engine.corpus.documents import Document, Limits
from engine.corpus.files import source_files
from engine.corpus.reading import read_files
from engine.corpus.shards import Cursor
found = list(read_files(source_files("text", sys.argv[1]), "text", Limits(1 << 20, 1 << 16), Cursor()))
print([one.text if isinstance(one, Document) else one.words for one in found])
status = open("/proc/self/status").read()  # ru_maxrss would begin with what the parent had
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def peak_mb(path: Path) -> tuple[str, int]:
    """What a process of its own reads of `path`, and its peak memory in MB."""
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
    found, peak = done.stdout.splitlines()
    return found, int(peak)


def test_a_line_of_two_gigabytes_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        file.seek(2 << 30, os.SEEK_CUR)  # a hole: two gigabytes that take no room on the disk
        file.write(b'"}\n{"text": "behind"}\n')
    found, peak = peak_mb(path)
    assert found.startswith("['before', ")
    assert found.endswith(", 'behind']")
    assert "line 2" in found
    assert "2,147,483" in found
    assert peak < 200


def test_a_long_line_that_packs_to_nothing_is_unpacked_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        file.write(packer.compress(b'{"text": "before"}\n{"text": "'))
        for _ in range(512):
            file.write(packer.compress(b"a" * (1 << 20)))
        file.write(packer.compress(b'"}\n{"text": "behind"}\n') + packer.flush())
    assert path.stat().st_size < 1 << 20
    found, peak = peak_mb(path)
    assert found.startswith("['before', ")
    assert found.endswith(", 'behind']")
    assert peak < 200


# ── the policy ────────────────────────────────────────────────────────────────────────────────────────────────────
def counted(lost: int) -> FaultTally:
    tally = FaultTally()
    for line in range(1, lost + 1):
        tally.add(Fault(kind=FaultKind.BAD_JSON, file="rows.jsonl", line=line))
    return tally


def test_refuse_ends_at_the_first_fault_and_names_it() -> None:
    with pytest.raises(EngineError) as told:
        BadInputPolicy(True, 1.0).check("web", 10**6, counted(1).counts, at_end=False)
    assert told.value.code == "corpus.bad_input"
    assert "rows.jsonl, line 1" in told.value.cause


def test_skip_ends_when_more_than_the_allowed_share_is_lost() -> None:
    policy = BadInputPolicy(False, 0.05)
    policy.check("web", 95, counted(5).counts, at_end=True)
    policy.check("web", 90, counted(10).counts, at_end=False)  # too few to judge while reading
    with pytest.raises(EngineError):
        policy.check("web", 90, counted(10).counts, at_end=True)
    with pytest.raises(EngineError):
        policy.check("web", 900, counted(100).counts, at_end=False)


def test_blank_documents_are_counted_and_no_reason_to_refuse() -> None:
    tally = FaultTally()
    tally.add(Fault(kind=FaultKind.BLANK, file="rows.jsonl", line=1, documents=0))
    BadInputPolicy(True, 0.0).check("web", 1, tally.counts, at_end=True)
    assert tally.counts.counts == {FaultKind.BLANK: 1}


# ── the hub ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_data_set_is_streamed_through_the_library_and_gone_on_with(tmp_path: Path) -> None:
    rows = texts(30)
    write_rows(tmp_path / "data" / "train-0.jsonl", rows[:20])
    write_rows(tmp_path / "data" / "train-1.jsonl", rows[20:])
    hub = HubText(SourceSection(name="web", path=f"hub:{tmp_path / 'data'}"))
    everything = list(hub.read(LIMITS, Cursor()))
    assert [one.text for one in everything if isinstance(one, Document)] == rows
    assert list(hub.read(LIMITS, Cursor(row=25))) == everything[25:]
    before = hub.identity()
    write_rows(tmp_path / "data" / "train-1.jsonl", rows[21:])
    assert hub.identity() != before


def test_a_data_set_without_the_column_or_that_is_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "a"}) + "\n")
    (fault,) = HubText(SourceSection(name="web", path=f"hub:{tmp_path}")).read(LIMITS, Cursor())
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.NO_COLUMN
    with pytest.raises(EngineError) as told:
        HubText(SourceSection(name="web", path=f"hub:{tmp_path / 'nothing'}")).identity()
    assert told.value.code == "corpus.hub"
