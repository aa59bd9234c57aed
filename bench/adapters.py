"""Merging and mixing adapters against peft's way, which builds the model: time and peak memory, in turn.

`python -m bench.adapters [--large [--layers N]] [--folder DIR]` writes random bfloat16 models in the shape of
TinyLlama 1.1B, and with --large of Llama 7B with five adapters, which only this program merges and mixes. Every figure
is of a process of its own, start-up and imports included: wall time, and the most that was resident (VmHWM). Needs 9 GB
of free disk, with --large 32 GB; fewer --layers of it take less disk and time, and the same memory, which is that of a
few matrices. A mix of this program tests itself unless told not to, which peft does not: both figures are printed, and
the one without is compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.surgery import SHAPES, Cost, Shape, measured, size_of, write_model

SMALL = "1.1B"
LARGE = Shape(32, 4096, 11008, 32, 32, 32000, False, ((0, 32), (32, 32)))
RANK, ALPHA = 16, 32
FEW_LAYERS = 2
"""Of the mix that needs a decomposition per matrix; memory is that of one matrix, whatever their number."""
MEMORY_BUDGET, TIME_BUDGET = 0.25, 1.0
"""Of peft's peak memory, and of its time."""
LARGE_BUDGET_BYTES = 4e9

PEFT_MERGE = textwrap.dedent(
    """
    import sys, torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base, out, adapter = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    """
)
PEFT_MIX = textwrap.dedent(
    """
    import sys, torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base, out, *adapters = sys.argv[1:]
    names = [str(number) for number in range(len(adapters))]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], adapters[1:]):
        model.load_adapter(folder, adapter_name=name)
    weights = [1 / (number + 1) for number in range(len(names))]
    model.add_weighted_adapter(names, weights, "mixed", combination_type="cat")
    model.save_pretrained(out, selected_adapters=["mixed"])
    """
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours against peft's."""

    what: str
    ours: Cost
    peft: Cost

    @property
    def memory(self) -> float:
        """Of its peak."""
        return self.ours.resident_bytes / self.peft.resident_bytes

    @property
    def time(self) -> float:
        """Of its wall time."""
        return self.ours.wall_seconds / self.peft.wall_seconds

    @property
    def holds(self) -> bool:
        """Whether both budgets are kept."""
        return self.memory <= MEMORY_BUDGET and self.time <= TIME_BUDGET


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────
def write_adapter(folder: Path, base: Path, shape: Shape, seed: int, *, layers: int = 0) -> Path:
    """A LoRA adapter on every linear layer (of the first `layers`), random factors in float32, in peft's form."""
    hidden, ffn, keys = shape.hidden, shape.ffn, shape.hidden // shape.heads * shape.kv_heads
    sizes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    names = {
        f"base_model.model.model.layers.{layer}.{module}.lora_{part}.weight": size
        for layer in range(layers or shape.layers)
        for module, (outputs, inputs) in sizes.items()
        for part, size in (("A", (RANK, inputs)), ("B", (outputs, RANK)))
    }
    folder.mkdir(parents=True)
    entries: dict[str, object] = {}
    position = 0
    for name, (rows, columns) in names.items():
        end = position + rows * columns * 4
        entries[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    draw = np.random.default_rng(seed)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for rows, columns in names.values():
            file.write((draw.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)).tobytes())
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "target_modules": [module.partition(".")[2] for module in sizes],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    return folder


def ours(verb: str, *words: str) -> list[str]:
    """The command as a user gives it."""
    return [sys.executable, "-m", "scaler_tui", "adapters", verb, *words]


def peft(script: str, *words: str) -> list[str]:
    """peft's way."""
    return [sys.executable, "-c", script, *words]


# ── comparisons ──────────────────────────────────────────────────────────────────────────────────────────────────
def compare(folder: Path) -> list[Ratio]:
    """Merge and mix on the small shape, both ways, in turn."""
    shape, base = SHAPES[SMALL], folder / "base"
    write_model(base, shape)
    adapters = [write_adapter(folder / f"adapter{number}", base, shape, number) for number in range(3)]
    named = [str(adapter) for adapter in adapters]
    weighted = [f"{adapter}={1 / (number + 1)}" for number, adapter in enumerate(named)]
    out, theirs = folder / "ours", folder / "peft"
    print(f"{SMALL}: {size_of(base) / 1e9:.2f} GB of weights, adapters of rank {RANK} on every linear layer")
    found = []
    options = ["--base", str(base), "--out", str(out)]
    for what, mine, other in (
        ("merge", ours("merge", named[0], *options, "--no-verify"), peft(PEFT_MERGE, str(base), str(theirs), named[0])),
        ("mix of 3", ours("mix", *weighted, *options, "--no-test"), peft(PEFT_MIX, str(base), str(theirs), *named)),
    ):
        ratio = Ratio(what, measured(mine), measured(other, HF_HUB_OFFLINE="1"))
        found.append(ratio)
        _print(ratio)
        shutil.rmtree(out)
        shutil.rmtree(theirs)
    tested = measured(ours("mix", *weighted, *options))
    print(
        f"  mix of 3  ours with its self-test {tested.wall_seconds:.1f} s, cpu {tested.cpu_seconds:.1f} s", flush=True
    )
    return found


def _print(ratio: Ratio) -> None:
    for name, cost in (("ours", ratio.ours), ("peft", ratio.peft)):
        print(
            f"  {ratio.what:<9} {name}  {cost.wall_seconds:6.1f} s  cpu {cost.cpu_seconds:6.1f} s  "
            f"peak {cost.resident_bytes / 1e6:7.0f} MB resident, {cost.anonymous_bytes / 1e6:7.0f} MB anonymous"
        )
    print(
        f"  {ratio.what:<9} ours / peft: {ratio.memory:.2f} of the memory (budget {MEMORY_BUDGET}), "
        f"{ratio.time:.2f} of the time (budget {TIME_BUDGET}){'' if ratio.holds else '  MISSED'}",
        flush=True,
    )


def large(folder: Path, layers: int) -> bool:
    """Five adapters on the 7B shape; whether everything stayed below 4 GB."""
    base = folder / "base7"
    shape = replace(LARGE, layers=layers)
    write_model(base, shape)
    adapters = [write_adapter(folder / f"large{number}", base, shape, number) for number in range(5)]
    few = [write_adapter(folder / f"few{number}", base, shape, number, layers=FEW_LAYERS) for number in range(5)]
    weighted, weighted_few = (
        [f"{adapter}={weight}" for adapter, weight in zip(some, (0.4, 0.3, 0.2, 0.2, -0.1), strict=True)]
        for some in (adapters, few)
    )
    out, held = folder / "out7", True
    print(
        f"7B: {size_of(base) / 1e9:.2f} GB of weights, {layers} of {LARGE.layers} layers, five adapters of rank {RANK}"
    )
    options = ["--base", str(base), "--out", str(out)]
    for what, command in (
        ("mix, exact", ours("mix", *weighted, *options)),
        ("merge", ours("merge", *weighted, *options, "--no-verify")),
        (f"ties, {FEW_LAYERS} layers", ours("mix", *weighted_few, *options, "--method", "ties", "--rank", "16")),
    ):
        cost = measured(command)
        held &= cost.resident_bytes < LARGE_BUDGET_BYTES
        print(
            f"  {what:<14} {cost.wall_seconds:6.1f} s  cpu {cost.cpu_seconds:6.1f} s  "
            f"peak {cost.resident_bytes / 1e6:6.0f} MB resident (budget {LARGE_BUDGET_BYTES / 1e6:.0f} MB)",
            flush=True,
        )
        shutil.rmtree(out)
    return held


def main() -> int:
    """Everything, or what the options name. Returns 1 when a budget was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapters")
    parser.add_argument("--large", action="store_true", help="also the 7B shape with five adapters (32 GB of disk)")
    parser.add_argument("--only-large", action="store_true")
    parser.add_argument("--layers", type=int, default=LARGE.layers, help="of the 7B shape")
    parser.add_argument("--folder", type=Path, help="where models are made; a temporary folder when left out")
    options, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        missed = False
        if not options.only_large:
            missed = not all(ratio.holds for ratio in compare(Path(name)))
        if options.large or options.only_large:
            missed |= not large(Path(name), options.layers)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
