"""Runs in the Python that has llama-cpp-python: token ids and logits of GGUF files, for the tests beside it.

    python llama_logits.py REQUESTS.json OUT.npz

A request: name, model, context; ids whose logits are wanted; texts to tokenise, as plain text with what the tokenizer
adds and as prompts with special tokens; lora, an adapter. Dims: T tokens, V vocabulary. Everything in float32, one
forward per text, no flash attention.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_vocab_is_eog

F32 = 0
"""ggml's type number, for the cache of keys and values; it would be 16-bit."""


def measure(request: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    length = request["context"]
    model = Llama(
        request["model"], n_ctx=length, n_batch=length, n_ubatch=length, n_threads=1, n_threads_batch=1,
        logits_all=True, flash_attn=False, type_k=F32, type_v=F32, verbose=False, lora_path=request.get("lora"),
    )  # fmt: skip
    name, ids = request["name"], request["ids"]
    found = {}
    if ids:
        model.eval(ids)
        found[f"{name}/logits"] = np.array(model.scores[: len(ids)], dtype=np.float32)  # (T, V)
    for number, text in enumerate(request.get("texts", ())):
        plain = model.tokenize(text.encode(), add_bos=True, special=False)
        prompt = model.tokenize(text.encode(), add_bos=False, special=True)
        found[f"{name}/plain/{number}"] = np.array(plain, dtype=np.int64)
        found[f"{name}/prompt/{number}"] = np.array(prompt, dtype=np.int64)
    vocabulary = model._model.vocab
    ends = [number for number in range(model.n_vocab()) if llama_vocab_is_eog(vocabulary, number)]
    found[f"{name}/ends"] = np.array(ends, dtype=np.int64)
    model.close()
    return found


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as stream:
        requests = json.load(stream)
    results: dict[str, np.ndarray[Any, Any]] = {}
    for request in requests:
        results |= measure(request)
    np.savez(sys.argv[2], **results)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
