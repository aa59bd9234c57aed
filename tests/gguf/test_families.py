"""Every family as a GGUF file: llama.cpp computes what transformers computes, and reads the same tokens.

Needs llama-cpp-python in the Python that the environment variable GGUF_PYTHON names (`make test-gguf`). One process
loads all files.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.rows import Message
from tests.gguf.asking import Arrays, ask, need_llama_cpp
from tests.gguf.families import FAMILIES, Family, write_model
from tests.gguf.piece_tokenizers import TEXTS

pytestmark = [pytest.mark.gguf, pytest.mark.slow]

LARGEST_DIFFERENCE, LARGEST_GEMMA_DIFFERENCE = 1e-4, 0.01
"""Of a logit, which span about 8; llama.cpp looks Gemma's gelu up in a table of 16-bit floats."""
CONTEXT, TOKENS = 512, 200
"""Beyond Gemma's windows of 32, and on the long side of LongRoPE's 128."""
TURNS = (Message("user", "Where is the red door?  Tell me."), Message("assistant", "Left of the café."))
SPECIAL = ("<s>", "<|", "<start_of_turn>")
"""Begin special tokens, which are text where special tokens are not looked for."""


def folder_of(family: Family, place: Path) -> Path:
    return place / family.name.replace(" ", "-").replace(",", "")


def prompt_of(folder: Path) -> str:
    from engine.data.tokenizer import ChatTokenizer

    return ChatTokenizer.load(folder).render(TURNS, add_generation_prompt=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_llama_cpp()
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def measured(place: Path) -> Arrays:
    """By family: "NAME/logits" by llama.cpp, "NAME/expected" by transformers, and tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    from engine.export.gguf import write_gguf

    requests, expected = [], {}
    for family in FAMILIES:
        folder = write_model(family, folder_of(family, place))
        out = place / f"{folder.name}.gguf"
        write_gguf(folder, out, "f32")
        ids = np.random.default_rng(0).integers(3, 900, TOKENS).tolist()
        requests.append({
            "name": family.name, "model": str(out), "context": CONTEXT, "ids": ids,
            "texts": [prompt_of(folder), *TEXTS],
        })  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        expected[f"{family.name}/expected"] = logits.numpy()
    return ask(requests, place) | expected


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_llama_cpp_computes_what_transformers_computes(family: Family, measured: Arrays) -> None:
    expected, found = measured[f"{family.name}/expected"], measured[f"{family.name}/logits"]
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    agreement = float((found.argmax(-1) == expected.argmax(-1)).mean())
    print(f"\n{family.name}: largest difference {difference.max():.1e}, mean {difference.mean():.1e}, "
          f"same first token {agreement:.1%}")  # fmt: skip
    assert difference.max() < (LARGEST_GEMMA_DIFFERENCE if "gemma" in family.name else LARGEST_DIFFERENCE)
    assert agreement >= 0.98  # random weights have near ties


@cache
def tokenizer_of(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_prompts_of_the_chat_template_give_the_same_tokens(family: Family, place: Path, measured: Arrays) -> None:
    folder = folder_of(family, place)
    expected = tokenizer_of(folder).encode(prompt_of(folder), add_special_tokens=False).ids
    assert len(expected) > 10
    assert measured[f"{family.name}/prompt/0"].tolist() == expected


def differs(family: Family, text: str) -> bool:
    """Where the file's findings say so: no NFC, one space at the start only; and a ▁ that is typed in Gemma's text."""
    return (
        (family.tokenizer == "qwen" and "\u0301" in text)
        or (family.tokenizer == "mistral" and bool(text))
        or (family.tokenizer == "gemma" and "▁▁" in text)
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_plain_texts_give_the_same_tokens(family: Family, place: Path, measured: Arrays) -> None:
    tokenizer, compared = tokenizer_of(folder_of(family, place)), 0
    for number, text in enumerate(TEXTS, 1):
        if differs(family, text) or any(word in text for word in SPECIAL):
            continue
        compared += 1
        assert measured[f"{family.name}/plain/{number}"].tolist() == tokenizer.encode(text).ids, text
    assert compared >= (1 if family.tokenizer == "mistral" else 15)


def test_generation_ends_where_the_model_ends_it(place: Path, measured: Arrays) -> None:
    for family in FAMILIES:
        tokenizer = tokenizer_of(folder_of(family, place))
        ends = {tokenizer.id_to_token(number) for number in measured[f"{family.name}/ends"].tolist()}
        wanted = {"gemma": {"<eos>", "<end_of_turn>"}, "phi3": {"<|endoftext|>", "<|end|>"}}.get(family.tokenizer)
        assert ends >= (wanted or ({"<|im_end|>"} if "im_end" in family.template else set()))
