"""Tokenizers in GGUF files: joined by llama.cpp's rule from what the file says, texts give the tokenizer's own ids."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.export import gguf_pieces
from engine.export.gguf import write_gguf
from engine.export.gguf_keys import name_for
from engine.export.gguf_pieces import pieces_of
from engine.export.gguf_tokenizer import GgufTokenizer, tokenizer_for_gguf
from engine.export.gguf_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from tests.gguf.piece_tokenizers import MARK, TEXTS, tokenizer_tree, write_piece_tokenizer
from tests.support.gguf_models import config_of, write_model

ROWS = 1100


def written(folder: Path, form: str, template: str = "") -> GgufTokenizer:
    folder.mkdir(exist_ok=True)
    write_piece_tokenizer(folder, form, template)
    (folder / "config.json").write_text(json.dumps(config_of("llama")))
    return tokenizer_for_gguf(folder, ROWS)


def joined(found: GgufTokenizer, text: str) -> list[int]:
    """llama.cpp's way, for text without control tokens: user-defined tokens first, the longest before the shorter;
    then the pair of neighbours whose union scores highest, the leftmost of equals; bytes for what is no token."""
    ids = {token: number for number, token in enumerate(found.tokens)}
    own = [token for token, kind in zip(found.tokens, found.types, strict=True) if kind == USER_DEFINED]
    parts: list[str | int] = [text] if text else []
    for token in sorted(own, key=lambda one: -len(one.encode())):
        parts = [piece for part in parts for piece in _cut(part, token, ids[token])]
    result: list[int] = [found.special.bos_id] if found.special.adds_bos and found.special.bos_id is not None else []
    space = found.adds_space
    for part in parts:
        if isinstance(part, int):
            result.append(part)
            space = found.adds_space
            continue
        result += _merged(((" " if space else "") + part).replace(" ", MARK), ids, found)
        space = False
    return result


def _cut(part: str | int, token: str, number: int) -> list[str | int]:
    if isinstance(part, int):
        return [part]
    pieces: list[str | int] = []
    for index, piece in enumerate(part.split(token)):
        pieces += [number] if index else []
        pieces += [piece] if piece else []
    return pieces


def _merged(text: str, ids: dict[str, int], found: GgufTokenizer) -> list[int]:
    symbols = list(text)
    while True:
        pairs = [
            (-found.scores[ids[left + right]], place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in ids
        ]
        if not pairs:
            break
        _, place = min(pairs)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return [
        number
        for symbol in symbols
        for number in ([ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()])
    ]


@pytest.mark.parametrize("form", ["llama", "phi3", "gemma"])
def test_texts_joined_by_llama_cpps_rule_give_the_tokenizers_own_ids(form: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    found = written(tmp_path / "model", form)
    tokenizer, compared = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")), 0
    for text in TEXTS:
        if any(word in text for word in ("<s>", "<|", "<start")) or (form == "gemma" and "▁▁" in text):
            continue
        compared += 1
        assert joined(found, text) == tokenizer.encode(text).ids, text
    assert compared >= 15


def test_pieces_have_their_types_and_special_tokens_their_ids(tmp_path: Path) -> None:
    found = written(tmp_path / "model", "gemma")
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert (found.model, found.adds_space, len(found.tokens)) == ("llama", False, ROWS)
    assert [kinds[name] for name in ("<bos>", "<unk>", "<0x0A>", "<b>", "\n\n", "  ")] == [
        CONTROL, UNKNOWN, BYTE, USER_DEFINED, USER_DEFINED, USER_DEFINED,
    ]  # fmt: skip
    assert MARK * 2 not in kinds
    assert kinds["▁the"] == NORMAL
    assert found.types[-1] == UNUSED
    special = found.special
    assert (special.bos_id, special.eos_id, special.unk_id, special.pad_id) == (2, 1, 3, 0)
    assert (special.adds_bos, special.adds_eos) == (True, False)


def test_a_file_has_scores_instead_of_merges(tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_model(tmp_path / "model", config_of("mistral"), tokenizer="llama")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf")
    keys = {name: field for name, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert keys["tokenizer.ggml.model"].contents() == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"].contents() is True
    assert len(keys["tokenizer.ggml.scores"].contents()) == 1220
    assert "tokenizer.ggml.merges" not in keys


@pytest.mark.parametrize(("template", "space"), [("{{ messages[0].content }}", False), ("", True)])
def test_a_space_at_the_start_only_is_right_for_prompts_or_for_text(template: str, space: bool, tmp_path: Path) -> None:
    found = written(tmp_path / "model", "mistral", template)
    assert found.adds_space is space
    assert [finding.code for finding in found.findings] == ["export.first_space"]
    assert ("template" if space is False else "special tokens") in found.findings[0].what


def changed(form: str, **model: Any) -> dict[str, Any]:
    tree = tokenizer_tree(form)
    return tree | {"model": tree["model"] | model}


def test_a_tokenizer_that_leaves_pairs_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tokenizer_tree("llama")
    fewer = changed("llama", merges=tree["model"]["merges"][::2])
    with pytest.raises(EngineError) as refusal:
        pieces_of(fewer, prompts=False)
    assert (refusal.value.code, "not among the merges" in refusal.value.cause) == ("export.tokenizer", True)
    monkeypatch.setattr(gguf_pieces, "LARGEST_SHARE_OF_OTHER_PAIRS", 0.01)  # of some hundred merges
    one_less = changed("llama", merges=tree["model"]["merges"][:-1])
    assert [finding.code for finding in pieces_of(one_less, prompts=False).findings] == ["export.merges"]


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Prepend", "prepend": MARK}]}},
        {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}},
        {"model": tokenizer_tree("llama")["model"] | {"byte_fallback": False}},
    ],
    ids=["charsmap", "NFKC", "words", "no bytes"],
)
def test_what_llama_cpp_does_not_do_to_text_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as refusal:
        pieces_of(tokenizer_tree("llama") | changes, prompts=False)
    assert refusal.value.code == "export.tokenizer"


def test_special_tokens_that_swallow_spaces_decide_the_name_llama_cpp_goes_by(tmp_path: Path) -> None:
    phi, other = written(tmp_path / "phi", "phi3"), written(tmp_path / "other", "llama")
    assert (phi.strips_right, other.strips_right) == (True, False)
    assert [name_for(name, phi) for name in ("mine", "My-Phi-3-mini")] == ["Phi-3 mine", "My-Phi-3-mini"]
    assert [name_for(name, other) for name in ("mine", "my-phi3-test")] == ["mine", "my-phi 3-test"]


def test_tokens_without_a_row_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    count = (written(folder, "llama"), len(tokenizer_tree("llama")["model"]["vocab"]))[1]
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["added_tokens"].append(tree["added_tokens"][1] | {"id": count, "content": "<image>"})
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    found = tokenizer_for_gguf(folder, count)
    assert len(found.tokens) == count
    assert "<image>" in found.findings[0].what
    with pytest.raises(EngineError, match="cannot be written"):
        tokenizer_for_gguf(folder, count - 10)


def test_stops_that_llama_cpp_does_not_know_get_a_key(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    written(folder, "llama")
    tree = json.loads((folder / "tokenizer.json").read_text())
    count = len(tree["model"]["vocab"])
    names = ("<done>", "<|im_end|>", "<over>", "<out>")
    tree["added_tokens"] += [
        tree["added_tokens"][1] | {"id": count + n, "content": name} for n, name in enumerate(names)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, *range(count, count + 4)]}))
    special = tokenizer_for_gguf(folder, ROWS).special
    assert (special.eos_id, special.eot_id, special.eom_id) == (2, count, count + 2)
    assert special.stops == (2, *range(count, count + 4))
    assert "'<out>'" in special.findings[0].what


def test_composed_accents_are_flagged_for_qwen(tmp_path: Path) -> None:
    write_model(tmp_path / "model", config_of("qwen2"))
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "NFC"}}))
    found = tokenizer_for_gguf(tmp_path / "model", 1220)
    assert [finding.code for finding in found.findings] == ["export.normalizer"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(EngineError, match="cannot be written"):
        tokenizer_for_gguf(tmp_path / "model", 1220)


def test_a_template_of_ones_own_replaces_the_folders(tmp_path: Path) -> None:
    write_model(tmp_path / "model", config_of("llama"))
    assert tokenizer_for_gguf(tmp_path / "model", 1220, "{{ mine }}").chat_template == "{{ mine }}"
    assert tokenizer_for_gguf(tmp_path / "model", 1220, "").chat_template == ""
