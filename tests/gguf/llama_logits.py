"""Runs in the Python that has llama-cpp-python: token ids and logits of GGUF files, for `test_llama_cpp.py`.

    python llama_logits.py REQUESTS.json OUT.npz

Dims: T tokens, V vocabulary. Everything in float32, one forward per text, no flash attention.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from llama_cpp import Llama

F32 = 0
"""ggml's type number, for the cache of keys and values; it would be 16-bit."""


def measure(request: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    length = request["context"]
    model = Llama(
        request["model"], n_ctx=length, n_batch=length, n_ubatch=length, n_threads=1, n_threads_batch=1,
        logits_all=True, flash_attn=False, type_k=F32, type_v=F32, verbose=False,
    )  # fmt: skip
    name, ids = request["name"], request["ids"]
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], dtype=np.float32)  # (T, V)
    found = {f"{name}/logits": logits}
    if request.get("text"):
        tokens = model.tokenize(request["text"].encode(), add_bos=True, special=True)
        found[f"{name}/tokens"] = np.array(tokens, dtype=np.int64)
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
