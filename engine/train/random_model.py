"""`python -m engine.train.random_model --config FILE --tokenizer DIR --out OUT`: a model folder of random weights.

Owns what "from random initialisation" means for an arm of a lab: the same shape as the model it is held against, equal
seeds equal bytes. Must not know labs. OUT appears when it is complete.

Two ways to draw: "library" leaves it to transformers (for most families a normal distribution of `initializer_range`);
"identity" makes every layer start as the identity on embeddings of unit size: matrices that write into the stream are
zero, the others have a standard deviation of one over the square root of their inputs. Source of the latter: zero
output projections as in Fixup (Zhang et al. 2019) and muP's readouts; fan-in scaling, LeCun et al. 1998. At small
widths the library's constant drowns the embeddings, so a comparison with it would flatter whatever it is held against.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from engine import helper_process
from engine.errors import EngineError, ExitCode

WAYS = ("library", "identity")
_WRITERS = ("o_proj", "down_proj", "out_proj", "c_proj", "w2", "fc2", "dense_4h_to_h", "attention.dense", "wo")
"""Endings of the modules whose output is added to the stream, over the families of `engine.expansion.layouts`."""


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    return helper_process.run(lambda: _run(options), _out_of_memory)


def _out_of_memory(cause: str) -> EngineError:
    return EngineError(
        "lab.memory",
        "The random model does not fit into memory.",
        cause=cause,
        next_step="Choose a smaller shape for this arm.",
        exit_code=ExitCode.RUN_FAILED,
    )


def _run(options: argparse.Namespace) -> None:
    write_random_model(
        json.loads(options.config.read_text()), options.tokenizer, options.out, options.seed, options.way
    )


def write_random_model(config: dict[str, Any], tokenizer: Path, out: Path, seed: int, way: str) -> None:
    """`config` is a config.json; weights are float32. Raises EngineError `lab.initialisation`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.jobs.staged import staged
    from engine.train.output import copy_tokenizer

    with staged(out) as folder:
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(seed)
        factory: Any = AutoModelForCausalLM
        built = factory.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        if way == "identity":
            start_as_identity(built)
        built.save_pretrained(folder)
        copy_tokenizer(tokenizer, folder)


def start_as_identity(model: Any) -> None:
    """Draw the weights of `model` anew from torch's generator. Raises EngineError where no layer is known."""
    import torch

    writers = 0
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = name.removesuffix(".weight").removesuffix(".bias")  # fused experts have neither
            if parameter is embedding:
                parameter.normal_(0.0, 1.0)
            elif module.endswith(_WRITERS):
                parameter.zero_()
                writers += 1
            elif parameter.dim() == 2 and (head is None or parameter is not head.weight):
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    if not writers:
        raise EngineError(
            "lab.initialisation",
            f'No layer of {type(model).__name__} is known to write into a stream, so "identity" cannot be drawn.',
            next_step='Set initialisation = "library" for this arm.',
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.train.random_model")
    parser.add_argument("--config", type=Path, required=True, help="a config.json")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the folder whose tokenizer is copied")
    parser.add_argument("--out", type=Path, required=True, help="the new folder")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--way", choices=WAYS, default="library")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
