"""The report and the prepared rows: counts that add up, refusals that say why, held-out rows kept apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.load import prepare
from engine.data.packing import pack
from engine.data.report import DataReport, check
from engine.data.rows import DropReason
from engine.data.summary import PartReport
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.jobs.spec import DataSection, TrainOn
from engine.resources import demo_dir, demo_model_dir

FILES = Path(__file__).parents[1] / "data" / "datasets"
MODEL = demo_model_dir()


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def section(**fields: object) -> DataSection:
    return DataSection(**{"heldout": "", "heldout_fraction": 0.0, "base_text": "", **fields})  # type: ignore[arg-type]


def dropped(part: PartReport) -> dict[DropReason, int]:
    return {drop.reason: drop.rows for drop in part.dropped}


def test_the_demo_is_prepared_whole_with_references_for_exact_match() -> None:
    data = prepare(DataSection(), MODEL)
    part = data.report.train
    assert part.path == str(demo_dir() / "finetune" / "train.jsonl")
    assert part.rows_kept == part.rows_read == len(data.train) > 100
    assert part.tokens == sum(len(row.input_ids) for row in data.train)
    assert 0 < part.trained_tokens == sum(row.trained_tokens for row in data.train) < part.tokens
    assert data.report.sequences == len(pack(data.train, 256))
    assert data.report.contaminated == 0
    assert data.heldout
    for row in data.heldout:
        assert row.input_ids[: len(row.prompt_ids)] == row.prompt_ids
        assert row.answer == row.messages[-1].content
        end = len(row.prompt_ids) + row.trained_tokens
        assert data.tokenizer.decode(row.input_ids[len(row.prompt_ids) : end]) == row.answer + "<|im_end|>"
    assert data.base_text
    assert all(row.trained == (False, *[True] * (len(row.input_ids) - 1)) for row in data.base_text)


def test_rows_kept_and_dropped_add_up_and_every_reason_is_located() -> None:
    report = check(str(FILES / "broken_rows.jsonl"), MODEL, section())
    part = report.train
    assert part.rows_read == 16
    assert part.rows_kept + part.rows_dropped == part.rows_read
    assert part.rows_kept == 1
    assert dropped(part)[DropReason.NO_ANSWER] == 1
    assert all(drop.examples and drop.text for drop in part.dropped)
    assert any("15 of 16 rows are left out" in warning for warning in report.warnings)
    json.dumps(report.as_json()).encode("utf-8")


def test_as_json_has_no_types_of_ours() -> None:
    written = check("demo", MODEL, section()).as_json()
    assert json.loads(json.dumps(written)) == json.loads(json.dumps(written, default=str))
    train = written["train"]
    assert isinstance(train, dict)
    assert len(train["sha256"]) == 64
    assert (train["format"], train["located_by"], train["kinds"].keys()) == ("jsonl", "line", {"chat"})


def test_long_rows_are_cut_and_counted_and_rows_without_trained_tokens_left_out(tmp_path: Path) -> None:
    rows = [chat("hi", "yes"), chat("hi", "word " * 60), chat("why " * 60, "because")]
    data = prepare(section(train=write(tmp_path / "t.jsonl", rows), max_length=32), MODEL)
    part = data.report.train
    assert (part.rows_kept, part.rows_truncated) == (2, 1)
    assert dropped(part) == {DropReason.ALL_CUT: 1}
    assert part.truncated[0].line == 2
    assert part.tokens_cut == data.train[1].full_length - 32
    assert len(data.train[1].input_ids) == 32
    assert any("1 rows (50%) are cut" in warning for warning in data.report.warnings)


def test_plain_text_is_continued_not_cut_and_every_token_is_predicted_once(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("A long story. " * 50, "utf-8")
    data = prepare(section(train=str(path), max_length=20), MODEL)
    tokenizer = data.tokenizer
    whole = (*tokenizer.text_ids("A long story. " * 50), tokenizer.eos_id)
    predicted = [t for row in data.train for t, m in zip(row.input_ids, row.trained, strict=True) if m]
    assert tuple(predicted) == whole[1:]
    assert max(len(row.input_ids) for row in data.train) == 20
    part = data.report.train
    assert (part.rows_read, part.rows_kept, part.rows_truncated) == (1, 1, 0)


def test_lengths_are_binned_completely_and_the_longest_rows_named(tmp_path: Path) -> None:
    rows = [chat("q", "word " * count) for count in range(1, 40)]
    report = check(write(tmp_path / "t.jsonl", rows), MODEL, section())
    assert sum(bin_.rows for bin_ in report.lengths) == 39
    assert all(low.high + 1 == high.low for low, high in zip(report.lengths, report.lengths[1:], strict=False))
    assert report.longest[0].line == 39


def test_the_mask_view_spells_the_row_and_marks_the_answer(tmp_path: Path) -> None:
    report = check(write(tmp_path / "t.jsonl", [chat("hi", "yes")] * 2), MODEL, section())
    tokens = report.samples[0].tokens
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert "".join(token.text for token in tokens) == text
    assert "".join(token.text for token in tokens if token.trained) == "yes<|im_end|>"


def test_duplicates_and_contamination_are_counted(tmp_path: Path) -> None:
    train = [chat("a", "1"), chat("b", "2"), chat("a", "1"), chat("c", "3")]
    heldout = write(tmp_path / "h.jsonl", [chat("a", "1"), chat("b", "other"), chat("new", "4")])
    data = prepare(section(train=write(tmp_path / "t.jsonl", train), heldout=heldout), MODEL)
    report = data.report
    assert (report.duplicates, report.duplicate_examples[0].line) == (1, 3)
    assert (report.heldout_rows, report.contaminated, report.shared_prompts) == (3, 1, 2)
    assert any("held-out rows are training rows too" in warning for warning in report.warnings)


def test_rows_set_aside_are_the_same_whatever_the_order_and_never_trained_on(tmp_path: Path) -> None:
    rows = [chat(f"question {n}", f"answer {n}") for n in range(50)]
    rows += rows[:10]
    one = prepare(section(train=write(tmp_path / "a.jsonl", rows), heldout_fraction=0.2), MODEL)
    two = prepare(section(train=write(tmp_path / "b.jsonl", rows[::-1]), heldout_fraction=0.2), MODEL)
    assert {row.digest for row in one.heldout} == {row.digest for row in two.heldout}
    assert len({row.digest for row in one.heldout}) == 10
    assert one.report.contaminated == 0
    assert len(one.train) + len(one.heldout) == 60
    assert all(row.prompt_ids and row.answer for row in one.heldout)


def test_a_single_row_is_not_set_aside(tmp_path: Path) -> None:
    data = prepare(section(train=write(tmp_path / "a.jsonl", [chat("q", "a")]), heldout_fraction=0.5), MODEL)
    assert (len(data.train), len(data.heldout)) == (1, 0)
    assert any("nothing is held out" in warning for warning in data.report.warnings)


def test_training_on_last_answers_or_everything_changes_the_trained_tokens(tmp_path: Path) -> None:
    two_turns = chat("q", "one")["messages"] * 2  # type: ignore[operator]
    train = write(tmp_path / "t.jsonl", [{"messages": two_turns}])
    counts = [
        check(train, MODEL, section(train_on=mode)).train.trained_tokens
        for mode in (TrainOn.LAST, TrainOn.COMPLETIONS, TrainOn.ALL)
    ]
    assert counts[0] * 2 == counts[1] < counts[2]


def test_training_on_everything_takes_rows_without_an_answer_but_held_out_rows_need_a_prompt(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "only a question"}]
    train = write(tmp_path / "t.jsonl", [{"messages": question}])
    assert check(train, MODEL, section(train_on=TrainOn.ALL)).train.rows_kept == 1
    model = rewriting_model(tmp_path / "model")
    template = "{% if not messages %}{{ raise_exception('nothing to say') }}{% endif %}"
    (model / "chat_template.jinja").write_text(template + (MODEL / "chat_template.jinja").read_text("utf-8"), "utf-8")
    greeting = {"messages": [{"role": "assistant", "content": "I begin"}]}
    heldout = write(tmp_path / "h.jsonl", [chat("q", "a"), greeting])
    data = prepare(section(train=train, heldout=heldout, train_on=TrainOn.ALL), model)
    assert data.report.heldout is not None
    assert dropped(data.report.heldout) == {DropReason.TEMPLATE_REFUSED: 1}


def test_text_needs_no_chat_template_that_works(tmp_path: Path) -> None:
    model = rewriting_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('never') }}", "utf-8")
    assert check(write(tmp_path / "t.jsonl", [{"text": "just text"}]), model, section()).train.rows_kept == 1
    with pytest.raises(EngineError, match="refuses a plain question"):
        check(write(tmp_path / "c.jsonl", [chat("q", "a")]), model, section())


def test_mixed_kinds_are_reported(tmp_path: Path) -> None:
    report = check(str(FILES / "mixed.jsonl"), MODEL, section())
    assert report.train.kinds == {"chat": 1, "prompt_completion": 2, "text": 1, "alpaca": 1, "sharegpt": 1}
    assert any("mixes kinds of rows" in warning for warning in report.warnings)


def test_csv_places_are_rows(tmp_path: Path) -> None:
    part = check(str(FILES / "semicolon_bom.csv"), MODEL, section()).train
    assert (part.located_by, part.rows_kept, part.rows_dropped) == ("row", 2, 3)


@pytest.mark.parametrize(
    ("rows", "options", "code", "words"),
    [
        ([{"question": 1}], {}, "data.no_rows", "first at line 1"),
        ([chat("why " * 60, "because")], {"max_length": 16}, "data.no_trained_tokens", "max_length is 16"),
        ([{"messages": [{"role": "user", "content": "q"}]}], {}, "data.no_rows", "no assistant turn"),
    ],
)
def test_data_without_a_trained_token_refuses_to_start(
    tmp_path: Path, rows: list[object], options: dict[str, object], code: str, words: str
) -> None:
    with pytest.raises(EngineError) as caught:
        check(write(tmp_path / "t.jsonl", rows), MODEL, section(**options))
    assert caught.value.code == code
    assert words in caught.value.cause
    assert caught.value.next_step


def rewriting_model(folder: Path) -> Path:
    """The demo's tokenizer with a template that removes a word from answers."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((MODEL / name).read_bytes())
    template = (MODEL / "chat_template.jinja").read_text("utf-8")
    changed = template.replace("message['content']", "message['content'] | replace('secret', '')")
    assert changed != template
    (folder / "chat_template.jinja").write_text(changed, "utf-8")
    return folder


def test_a_few_rows_the_template_changes_are_left_out_but_many_refuse_to_start(tmp_path: Path) -> None:
    model = rewriting_model(tmp_path / "model")
    fine = [chat(f"q{n}", f"answer {n}") for n in range(19)]
    few = check(write(tmp_path / "few.jsonl", [*fine, chat("q", "a secret b")]), model, section())
    assert dropped(few.train) == {DropReason.ROUND_TRIP: 1}
    with pytest.raises(EngineError) as caught:
        check(write(tmp_path / "many.jsonl", [*fine, *[chat("q", "a secret b")] * 5]), model, section())
    assert caught.value.code == "data.template_round_trip"
    assert "line 20" in caught.value.cause
    assert "a secret b" in caught.value.cause


def test_the_demo_held_out_rows_are_not_compared_with_other_data(tmp_path: Path) -> None:
    report = check(write(tmp_path / "t.jsonl", [chat("q", "a")]), MODEL, DataSection())
    assert (report.heldout, report.heldout_rows, report.train.rows_kept) == (None, 0, 1)


def test_check_and_prepare_agree(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [chat(f"q{n % 7}", "a" * n) for n in range(1, 40)])
    chosen = section(train=train, heldout_fraction=0.1, max_length=64)
    assert check(train, MODEL, chosen) == prepare(chosen, MODEL).report


def test_no_heavy_library_is_loaded_to_report(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engine.data.report import check; "
        "from engine.jobs.spec import DataSection\n"
        "early = {'jinja2', 'tokenizers', 'pyarrow', 'torch', 'numpy'} & set(sys.modules)\n"
        "check('demo', Path(sys.argv[1]), DataSection())\n"
        "late = {'torch', 'transformers', 'numpy', 'textual'} & set(sys.modules)\n"
        "print(sorted(early), sorted(late))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(MODEL)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"], done.stdout


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=5),
    st.sampled_from(list(TrainOn)),
)
def test_any_text_is_trained_exactly_or_left_out(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], train_on: TrainOn
) -> None:
    train = write(tmp_path_factory.mktemp("any") / "t.jsonl", [chat(q, a) for q, a in pairs])
    try:
        data = prepare(section(train=train, train_on=train_on, max_length=512), MODEL)
    except EngineError as error:
        assert error.code in ("data.no_rows", "data.no_trained_tokens")  # noqa: PT017
        return
    report: DataReport = data.report
    assert report.train.rows_kept + report.train.rows_dropped == len(pairs)
    tokenizer: ChatTokenizer = data.tokenizer
    for row in data.train:
        question, answer = pairs[row.line - 1]
        spelled = tokenizer.decode([t for t, m in zip(row.input_ids, row.trained, strict=True) if m])
        everything = f"user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        assert spelled == (everything if train_on is TrainOn.ALL else f"{answer}<|im_end|>")


def test_the_plain_english_that_ships_measures_forgetting() -> None:
    from engine.data.load import resolve_file

    text = resolve_file("general", "base_text").read_text(encoding="utf-8")
    assert len(text.split()) > 500
