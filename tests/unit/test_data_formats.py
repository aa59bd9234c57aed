"""Reading: every format and kind, every broken row located, nothing lost and nothing raised but EngineError."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.data.files import Record, detect_format, file_digest, read_records
from engine.data.formats import read_rows, understand
from engine.data.rows import DropReason, FileFormat, Message, Problem, RowKind, SourceRow
from engine.errors import EngineError

FILES = Path(__file__).parents[1] / "data" / "datasets"


def rows_of(path: Path) -> list[SourceRow | Problem]:
    return list(read_rows(path, detect_format(path)))


def good(path: Path) -> list[SourceRow]:
    return [row for row in rows_of(path) if isinstance(row, SourceRow)]


def test_chat_rows_keep_their_line_past_blank_lines_and_join_text_parts() -> None:
    rows = good(FILES / "chat.jsonl")
    assert [row.line for row in rows] == [1, 3, 4]
    assert [message.role for message in rows[1].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert rows[2].messages[0] == Message("user", "Say hi")
    assert rows[2].ignored == ("id",)


def test_every_broken_row_is_located_with_its_reason() -> None:
    rows = rows_of(FILES / "broken_rows.jsonl")
    found = {row.line: row.reason for row in rows if isinstance(row, Problem)}
    assert found == {
        2: DropReason.BAD_JSON,
        3: DropReason.EMPTY_CONTENT,
        4: DropReason.UNKNOWN_ROLE,
        5: DropReason.NOT_TEXT,
        6: DropReason.UNKNOWN_KEYS,
        7: DropReason.NOT_AN_OBJECT,
        9: DropReason.UNSUPPORTED_FIELD,
        10: DropReason.EMPTY_CONTENT,
        11: DropReason.BAD_JSON,
        12: DropReason.BAD_UTF8,
        13: DropReason.UNKNOWN_KEYS,
        14: DropReason.UNKNOWN_KEYS,
        15: DropReason.NOT_TEXT,
        16: DropReason.NOT_AN_OBJECT,
    }
    assert len(rows) == 16


def test_alpaca_rows_have_a_chat_and_a_plain_form() -> None:
    rows = rows_of(FILES / "alpaca.json")
    first, second, third = rows
    assert isinstance(first, SourceRow)
    assert isinstance(second, SourceRow)
    assert first.messages == (Message("user", "Translate to French.\n\ncat"), Message("assistant", "chat"))
    assert first.prompt == "### Instruction:\nTranslate to French.\n\n### Input:\ncat\n\n### Response:\n"
    assert second.messages[0].content == "Name a colour."
    assert isinstance(third, Problem)
    assert (third.line, third.reason) == (3, DropReason.EMPTY_CONTENT)


def test_sharegpt_roles_and_system_text_are_translated() -> None:
    first, second = good(FILES / "sharegpt.json")
    assert [(m.role, m.content) for m in first.messages] == [
        ("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi!")
    ]  # fmt: skip
    assert (first.kind, second.line) == (RowKind.SHAREGPT, 2)


def test_an_object_that_wraps_the_rows_is_opened() -> None:
    assert [row.answer for row in good(FILES / "wrapped.json")] == ["b", "d"]


def test_a_cut_off_array_is_refused_with_the_line() -> None:
    with pytest.raises(EngineError, match="line 4"):
        rows_of(FILES / "cut_off.json")


def test_csv_with_bom_semicolons_and_line_breaks_in_quotes() -> None:
    rows = rows_of(FILES / "semicolon_bom.csv")
    first = rows[0]
    assert isinstance(first, SourceRow)
    assert (first.prompt, first.answer) == ("two\r\nlines", 'with "quotes"; and a semicolon')
    problems = {row.line: row.reason for row in rows if isinstance(row, Problem)}
    assert problems == {2: DropReason.BAD_CSV, 4: DropReason.EMPTY_CONTENT, 5: DropReason.BAD_UTF8}
    assert [row.line for row in rows if isinstance(row, SourceRow)] == [1, 3]


def test_a_quote_that_is_never_closed_is_refused_with_the_row() -> None:
    with pytest.raises(EngineError, match=r"row 2 \(line 3\)"):
        rows_of(FILES / "open_quote.csv")


def test_tabs_separate_and_question_and_answer_are_a_pair() -> None:
    (row,) = good(FILES / "tabs.tsv")
    assert (row.kind, row.prompt, row.answer) == (RowKind.PROMPT_COMPLETION, "What?", "That.")


def test_plain_text_is_paragraphs_with_their_first_line() -> None:
    rows = rows_of(FILES / "paragraphs.txt")
    assert [(row.line, row.text) for row in rows if isinstance(row, SourceRow)] == [
        (3, "First paragraph,\ntwo lines."), (7, "Second paragraph."), (10, "Third.")
    ]  # fmt: skip
    assert [(row.line, row.reason) for row in rows if isinstance(row, Problem)] == [(8, DropReason.BAD_UTF8)]


def test_kinds_may_be_mixed_in_one_file() -> None:
    assert [row.kind for row in good(FILES / "mixed.jsonl")] == [
        RowKind.CHAT, RowKind.PROMPT_COMPLETION, RowKind.TEXT, RowKind.ALPACA, RowKind.SHAREGPT,
        RowKind.PROMPT_COMPLETION,
    ]  # fmt: skip


def test_parquet_rows_with_lists_of_turns_and_nulls(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table({"messages": [turns, None, turns], "score": [1.0, 2.0, None]}), path)
    rows = rows_of(path)
    assert detect_format(path) is FileFormat.PARQUET
    assert [type(row) for row in rows] == [SourceRow, Problem, SourceRow]
    assert (rows[1].line, rows[0].line) == (2, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EngineError, match="cannot be read as Parquet"):
        rows_of(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.json", b'{"text": "a"}\n{"text": "b"}\n', FileFormat.JSONL),
        ("rows.jsonl", b'[{"text": "a"}]', FileFormat.JSON),
        ("rows.json", b'\xef\xbb\xbf\n[{"text": "a"}]', FileFormat.JSON),
        ("rows.json", b'{\n "data": [{"text": "a"}]\n}', FileFormat.JSON),
        ("rows.data", b'{"text": "a"}\n', FileFormat.JSONL),
        ("rows", b"prompt,completion\na,b\n", FileFormat.CSV),
        ("rows", b"Once upon a time, there was text.\n", FileFormat.TEXT),
    ],
)
def test_the_format_is_told_by_content_before_extension(
    tmp_path: Path, name: str, content: bytes, expected: FileFormat
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert detect_format(path) is expected
    assert good(path)


def _write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        ("missing.jsonl", lambda path: None, "data.not_found"),
        ("folder.jsonl", lambda path: path.mkdir(), "data.is_folder"),
        ("empty.jsonl", lambda path: path.touch(), "data.empty"),
        ("blank.jsonl", _write(b"\n \n\n"), "data.empty"),
        ("packed.jsonl", _write(gzip.compress(b"{}")), "data.binary"),
        ("model.txt", _write(b"abc\0\0\1"), "data.binary"),
        ("notepad.txt", _write("hallo".encode("utf-16")), "data.utf16"),
        ("renamed.parquet", _write(b"text"), "data.broken_parquet"),
        ("short.parquet", _write(b"PAR1"), "data.broken_parquet"),
        ("array.json", _write(b'[{"text": "a"} {"text": "b"}]'), "data.broken_json"),
        ("deep.json", _write(b"[" * 200_000), "data.broken_json"),
        ("after.json", _write(b'[{"text": "a"}] more'), "data.broken_json"),
        ("latin.json", _write(b'[{"text": "\xe4"}]'), "data.bad_utf8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path], None], code: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(EngineError) as caught:
        rows_of(path)
    assert caught.value.code == code
    assert str(path) in caught.value.what


def test_a_line_nested_too_deeply_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"text": "a"}\n' + "[" * 200_000 + "\n" + "9" * 10_000 + '\n{"text": "b"}\n')
    assert [row.line for row in rows_of(path) if isinstance(row, Problem)] == [2, 3]
    assert len(good(path)) == 2


def test_the_digest_is_that_of_the_bytes() -> None:
    import hashlib

    path = FILES / "chat.jsonl"
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["messages", "conversations", "instruction", "input", "output", "prompt", "completion", "text", "system", "tools"]
)
TURN_KEYS = st.sampled_from(["role", "content", "from", "value", "tool_calls"])
TURNS = st.lists(
    st.dictionaries(TURN_KEYS, st.sampled_from(["user", "assistant", "gpt", "", " "]) | JSON, max_size=4) | JSON,
    max_size=4,
)
ROWS = st.dictionaries(KEYS, JSON | TURNS | st.text(), max_size=5) | JSON


@given(st.lists(ROWS, max_size=8))
def test_any_json_value_becomes_one_row_or_one_problem(values: list[object]) -> None:
    found = list(understand(Record(line, value) for line, value in enumerate(values, start=1)))
    assert [item.line for item in found] == list(range(1, len(values) + 1))
    for item in found:
        if isinstance(item, SourceRow):
            assert item.messages or item.text
            assert all(message.role in ("system", "user", "assistant", "tool") for message in item.messages)


@settings(max_examples=150)
@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from(["jsonl", "json"]))
def test_any_json_file_is_read_completely(values: list[object], suffix: str) -> None:
    assume(suffix == "json" or len(values) > 1 or not isinstance(values[0], list))  # one line of a list is an array
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{suffix}"
        lines = [json.dumps(value) for value in values]
        path.write_text("\n".join(lines) if suffix == "jsonl" else "[" + ",\n".join(lines) + "]", "utf-8")
        assert len(rows_of(path)) == len(values)


@settings(max_examples=150)
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "json", "csv", "parquet", "txt", "bin"]))
def test_any_bytes_are_read_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{suffix}"
        path.write_bytes(content)
        with suppress(EngineError):
            form = detect_format(path)
            list(read_records(path, form))
            list(read_rows(path, form))
