"""`python -m engine.evaluation.sayings ASKED.json OUT.npz --model DIR [--adapter DIR] [--other DIR OTHER.npz]`: what
plain transformers says to questions that other programs are asked too.

Owns that process. The other folder reads the first one's prompts and answers, position by position, so that both speak
of the same tokens; its own answers are written beside them. Must not know what is compared or why.

Dims: B 1, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import helper_process
from engine.errors import EngineError, ExitCode
from engine.evaluation.asked import Asked, read_asked


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.evaluation.sayings", description=__doc__)
    parser.add_argument("asked", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="the folder that holds config, weights, tokenizer")
    parser.add_argument("--adapter", type=Path, help="a peft folder on top of it")
    parser.add_argument("--other", nargs=2, type=Path, metavar=("DIR", "OUT"), help="a folder to hold against it")
    options = parser.parse_args(arguments)
    helper_process.leave_with_the_asker()
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in these folders
    return helper_process.run(lambda: _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "verify.memory",
        "transformers ran out of memory.",
        cause=cause,
        next_step="Close other programs, or export without the comparison: --no-verify",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def _run(options: argparse.Namespace) -> None:
    asked = read_asked(options.asked)
    speaker = _opened(options.model, options.adapter)
    found = _answers(speaker, asked, None)
    _write(options.out, found)
    if options.other is not None:
        folder, out = options.other
        del speaker
        _write(out, _answers(_opened(folder, None), asked, found))


def _write(path: Path, found: dict[str, Any]) -> None:
    """Complete or not there."""
    import numpy as np

    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **found)
    partial.replace(path)


@dataclass(frozen=True, slots=True)
class _Speaker:
    model: Any
    tokenizer: Any

    def logits(self, ids: list[int]) -> Any:
        """(T, V) float32."""
        import torch

        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    def answer(self, ids: list[int], asked: Asked) -> tuple[list[int], bool]:
        """The greedy answer, and whether it ended at a stop token; that token is its last."""
        import torch

        said: list[int] = []
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([ids]), use_cache=True)
            while len(said) < asked.new_tokens:
                said.append(int(output.logits[0, -1].float().argmax()))
                if said[-1] in asked.stops:
                    return said, True
                output = self.model(
                    input_ids=torch.tensor([said[-1:]]), past_key_values=output.past_key_values, use_cache=True
                )
        return said, False


def _answers(speaker: _Speaker, asked: Asked, reference: dict[str, Any] | None) -> dict[str, Any]:
    import numpy as np

    found: dict[str, Any] = {"runtime": np.array(f"transformers {importlib.metadata.version('transformers')}")}
    total = len(asked.chats) + len(asked.passages)
    for number, _ in enumerate(asked.chats):
        _tell(number, total, "transformers answers")
        prompt = _prompt(speaker, asked, number)
        own, ended = speaker.answer(prompt, asked)
        read = prompt + own if reference is None else _read(reference, number)
        logits = speaker.logits(read)
        found |= {
            f"prompt/{number}": np.array(prompt, dtype=np.int64),
            f"answer/{number}": np.array(own, dtype=np.int64),
            f"ended/{number}": np.array(ended),
            f"top/{number}": logits.argmax(-1).numpy(),  # (T)
            f"logits/{number}": logits[-asked.kept :].numpy(),  # (K, V)
        }
    for number, ids in enumerate(asked.passages):
        _tell(len(asked.chats) + number, total, "transformers reads the held-out text")
        found[f"nll/{number}"] = _nats(speaker.logits(list(ids)), ids)
    for number, text in enumerate(asked.texts):
        found[f"text/{number}"] = np.array(speaker.tokenizer(text)["input_ids"], dtype=np.int64)
    _tell(total, total, "transformers is done")
    return found


def _prompt(speaker: _Speaker, asked: Asked, number: int) -> list[int]:
    if not asked.has_template:
        return list(speaker.tokenizer(asked.rendered[number], add_special_tokens=False)["input_ids"])
    ids = speaker.tokenizer.apply_chat_template(
        list(asked.chats[number]), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def _read(reference: dict[str, Any], number: int) -> list[int]:
    """The tokens of the reference's prompt and answer."""
    return [*reference[f"prompt/{number}"].tolist(), *reference[f"answer/{number}"].tolist()]


def _nats(logits: Any, ids: tuple[int, ...]) -> Any:
    """(T, V) logits -> (T-1) nats of each token after the first."""
    import torch

    logs = torch.log_softmax(logits[:-1].double(), dim=-1)
    return -logs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def _tell(done: int, total: int, words: str) -> None:
    helper_process.LineOut().write(json.dumps({"done": done, "total": total, "words": words}).encode() + b"\n")


def _opened(folder: Path, adapter: Path | None) -> _Speaker:
    """Nothing of this program's own: what anybody's transformers makes of the folder. Raises EngineError
    `verify.load`, `verify.memory`."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, StrictDataclassError) as error:
        raise _does_not_load(folder, " ".join(str(error).split())[:300]) from error
    model, info = loaded
    strange = [f"{kind.partition('_')[0]}: {sorted(map(str, info[kind]))[0]}" for kind in _STRANGE if info.get(kind)]
    if strange:
        raise _does_not_load(folder, "; ".join(strange))
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return _Speaker(model.eval().requires_grad_(False), tokenizer)


_STRANGE = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _does_not_load(folder: Path, cause: str) -> EngineError:
    return EngineError(
        "verify.load",
        f"Stock transformers does not load {folder}.",
        cause=cause,
        next_step=f"Look at it with: scaler-wizard inspect {shlex.quote(str(folder))}",
        exit_code=ExitCode.RUN_FAILED,
    )


def _dtype(folder: Path) -> Any:
    """32-bit floats where they fit into memory, else 16. Raises EngineError `verify.memory`."""
    import torch

    from engine.evaluation.loading import weight_bytes

    for dtype in (torch.float32, torch.bfloat16):
        needed, free = weight_bytes(folder, dtype, "none", "cpu")
        if needed < free:
            return dtype
    raise EngineError(
        "verify.memory",
        "The model does not fit into the memory that is free.",
        cause=f"Its weights take {needed / 1e9:.1f} GB in 16 bits; {free / 1e9:.1f} GB are free.",
        next_step="Export without the comparison: --no-verify",
        exit_code=ExitCode.DOES_NOT_FIT,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
