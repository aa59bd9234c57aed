"""What llama.cpp says to the questions that transformers was asked. A script for the Python that has llama-cpp-python:

    python llama_sayings.py ASKED.json REFERENCE.npz OUT.npz MODEL.gguf [ADAPTER.gguf]

Owns that process; imports numpy and llama_cpp only, for that Python may have nothing else. Every position of the
reference's prompts and answers is read, 32-bit keys and values, no flash attention; then the model answers by itself,
until one of the tokens at which llama.cpp itself ends generation for this file (`ends`).
The questions and the names of the arrays are `engine.evaluation.asked`'s. `PYTHON llama_sayings.py --version` says
which llama-cpp-python it is.

Dims: T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

F32 = 0
"""ggml's type number, for the cache of keys and values; it would be 16-bit."""
ROOM = 8


def main(words: list[str]) -> int:
    """Entry point; returns the exit code."""
    import llama_cpp

    if words == ["--version"]:
        sys.stdout.write(llama_cpp.__version__ + "\n")
        return 0
    asked_path, reference_path, out_path, model, *adapter = words
    with open(asked_path, encoding="utf-8") as stream:
        asked = json.load(stream)
    with np.load(reference_path) as found:
        reference = {name: found[name] for name in found.files}
    answers = _answers(_opened(model, adapter, asked, reference), asked, reference)
    answers["runtime"] = np.array(f"llama.cpp ({llama_cpp.__version__})")
    with open(out_path, "wb") as file:
        np.savez(file, **answers)
    return 0


def _opened(model: str, adapter: list[str], asked: dict[str, Any], reference: dict[str, Any]) -> Any:
    from llama_cpp import Llama

    chats = range(len(asked["chats"]))
    needed = [len(reference[f"prompt/{n}"]) + asked["new_tokens"] for n in chats]
    length = max([*needed, *(len(ids) for ids in asked["passages"])]) + ROOM
    threads = max(1, min(8, len(os.sched_getaffinity(0))))
    return Llama(
        model, n_ctx=length, n_batch=length, n_ubatch=length, n_threads=threads, n_threads_batch=threads,
        logits_all=True, flash_attn=False, type_k=F32, type_v=F32, verbose=False, n_gpu_layers=0,
        lora_path=adapter[0] if adapter else None,
    )  # fmt: skip


def _answers(model: Any, asked: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    formatter, ends = _formatter(model), _ends(model)
    found["ends"] = np.array(sorted(ends), dtype=np.int64)
    for number, turns in enumerate(asked["chats"]):
        prompt = reference[f"prompt/{number}"].tolist()
        logits = _logits(model, prompt + reference[f"answer/{number}"].tolist())
        kept = reference[f"logits/{number}"]
        said, ended = _answer(model, prompt, asked["new_tokens"], ends)
        found |= {
            f"prompt/{number}": np.array(_prompt(model, formatter, asked, number, turns), dtype=np.int64),
            f"answer/{number}": np.array(said, dtype=np.int64),
            f"ended/{number}": np.array(ended),
            f"top/{number}": logits.argmax(-1),
            f"logits/{number}": logits[-len(kept) :],
        }
        _tell(number + 1, len(asked["chats"]) + len(asked["passages"]))
    for number, ids in enumerate(asked["passages"]):
        found[f"nll/{number}"] = _nats(_logits(model, ids), ids)
        _tell(len(asked["chats"]) + number + 1, len(asked["chats"]) + len(asked["passages"]))
    for number, text in enumerate(asked["texts"]):
        tokens = model.tokenize(text.encode("utf-8"), add_bos=True, special=True)
        found[f"text/{number}"] = np.array(tokens, dtype=np.int64)
    return found


def _logits(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """(T, V) float32, nothing cached before."""
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)], dtype=np.float32)


def _ends(model: Any) -> set[int]:
    """Ids at which llama.cpp ends generation: those that the file names, and those that it knows by their text."""
    import llama_cpp

    vocab = model._model.vocab
    return {token for token in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)}


def _answer(model: Any, prompt: list[int], new_tokens: int, ends: set[int]) -> tuple[list[int], bool]:
    """The greedy answer, and whether it ended at one of `ends`; that token is its last."""
    model.reset()
    model.eval(prompt)
    said: list[int] = []
    while len(said) < new_tokens:
        said.append(int(model.scores[model.n_tokens - 1].argmax()))
        if said[-1] in ends:
            return said, True
        model.eval(said[-1:])
    return said, False


def _formatter(model: Any) -> Any:
    """The template in the file, as llama-cpp-python renders it; None where there is none."""
    template = model.metadata.get("tokenizer.chat_template")
    if not template:
        return None
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def text(token: int) -> str:
        return str(model._model.token_get_text(token)) if token != -1 else ""

    return Jinja2ChatFormatter(
        template=template, eos_token=text(model.token_eos()), bos_token=text(model.token_bos()),
        stop_token_ids=[model.token_eos()],
    )  # fmt: skip


def _prompt(model: Any, formatter: Any, asked: dict[str, Any], number: int, turns: Any) -> list[int]:
    text = asked["rendered"][number] if formatter is None else formatter(messages=turns).prompt
    tokens: list[int] = model.tokenize(text.encode("utf-8"), add_bos=False, special=True)
    return tokens


def _nats(logits: np.ndarray[Any, Any], ids: list[int]) -> np.ndarray[Any, Any]:
    """(T, V) logits -> (T-1) nats of each token after the first."""
    wide = logits[:-1].astype(np.float64)
    top = wide.max(-1, keepdims=True)
    logs = wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))
    nats: np.ndarray[Any, Any] = -logs[np.arange(len(ids) - 1), ids[1:]]
    return nats


def _tell(done: int, total: int) -> None:
    sys.stdout.write(json.dumps({"done": done, "total": total, "words": "llama.cpp answers"}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
