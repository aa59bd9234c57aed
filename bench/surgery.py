"""The surgery against the disk and against mergekit 0.1.5, on the same depth growth, in turn.

`python -m bench.surgery [--shape 1.1B] [--runs 3] [--phi] [--folder DIR]` prints medians of wall time, processor time,
peak anonymous and peak resident memory. Needs about 12 GB of free disk for the 1.1B shape and 32 GB for the 3.2B one.
mergekit is installed into a throwaway environment; where that is not possible, the comparison is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.expansion.recipe import Recipe
from engine.surgery.reader import TensorReader
from engine.surgery.shards import index_bytes, split
from engine.surgery.writer import Writing, write_shards

MERGEKIT = "0.1.5"
POLL_SECONDS = 0.01
DISK_BUDGET, MERGEKIT_BUDGET, ANONYMOUS_BUDGET = 1.5, 0.5, 0.25
"""Of dd's time, of mergekit's time, of mergekit's anonymous memory."""


@dataclass(frozen=True)
class Shape:
    """A model to grow, and the layers of the grown one as mergekit's two slices."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    slices: tuple[tuple[int, int], tuple[int, int]]

    @property
    def layers_after(self) -> int:
        return sum(end - begin for begin, end in self.slices)


SHAPES = {
    "1.1B": Shape(22, 2048, 5632, 32, 4, 32000, False, ((0, 17), (5, 22))),
    "3.2B": Shape(28, 3072, 8192, 24, 8, 128256, True, ((0, 21), (7, 28))),
}
PHI = Shape(32, 3072, 8192, 32, 32, 32064, False, ((0, 32), (32, 32)))


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    wall_seconds: float
    cpu_seconds: float
    anonymous_bytes: int
    resident_bytes: int


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────
def write_model(folder: Path, shape: Shape, *, phi: bool = False, shard_bytes: int = 2_000_000_000) -> None:
    """Random bfloat16 weights in the family's names, made by the surgery's own writer."""
    folder.mkdir(parents=True)
    recipes = [
        Recipe(name, size, "BF16", (), (), fresh_std=0.02, constant=1.0 if len(size) == 1 else None)
        for name, size in (_phi_tensors(shape) if phi else _llama_tensors(shape))
    ]
    shards = split(recipes, shard_bytes)
    with TensorReader(()) as reader:
        write_shards(shards, Writing(folder, reader, 1, {}, lambda _: None, lambda _: None))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_bytes(index_bytes(shards))
    name, kind = ("Phi3ForCausalLM", "phi3") if phi else ("LlamaForCausalLM", "llama")
    config = {
        "architectures": [name], "model_type": kind, "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads, "vocab_size": shape.vocab, "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096, "hidden_act": "silu",
        "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _llama_tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    hidden, ffn, keys = shape.hidden, shape.ffn, shape.hidden // shape.heads * shape.kv_heads
    tensors: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (shape.vocab, hidden))]
    for layer in range(shape.layers):
        start = f"model.layers.{layer}."
        tensors += [
            (f"{start}input_layernorm.weight", (hidden,)),
            (f"{start}self_attn.q_proj.weight", (hidden, hidden)),
            (f"{start}self_attn.k_proj.weight", (keys, hidden)),
            (f"{start}self_attn.v_proj.weight", (keys, hidden)),
            (f"{start}self_attn.o_proj.weight", (hidden, hidden)),
            (f"{start}post_attention_layernorm.weight", (hidden,)),
            (f"{start}mlp.gate_proj.weight", (ffn, hidden)),
            (f"{start}mlp.up_proj.weight", (ffn, hidden)),
            (f"{start}mlp.down_proj.weight", (hidden, ffn)),
        ]
    return tensors + _ends(shape)


def _phi_tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    hidden, ffn = shape.hidden, shape.ffn
    tensors: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (shape.vocab, hidden))]
    for layer in range(shape.layers):
        start = f"model.layers.{layer}."
        tensors += [
            (f"{start}input_layernorm.weight", (hidden,)),
            (f"{start}self_attn.qkv_proj.weight", (3 * hidden, hidden)),
            (f"{start}self_attn.o_proj.weight", (hidden, hidden)),
            (f"{start}post_attention_layernorm.weight", (hidden,)),
            (f"{start}mlp.gate_up_proj.weight", (2 * ffn, hidden)),
            (f"{start}mlp.down_proj.weight", (hidden, ffn)),
        ]
    return tensors + _ends(shape)


def _ends(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    head = [] if shape.tied else [("lm_head.weight", (shape.vocab, shape.hidden))]
    return [("model.norm.weight", (shape.hidden,)), *head]


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────
def measured(command: Sequence[str], **environment: str) -> Cost:
    """Run a process to its end. Raises SystemExit with its words when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        anonymous = resident = 0
        while process.poll() is None:
            status = _status(process.pid)
            anonymous = max(anonymous, status.get("RssAnon", 0))
            resident = max(resident, status.get("VmHWM", 0))
            time.sleep(POLL_SECONDS)
        wall = time.perf_counter() - started
        if process.returncode:
            words.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{words.read()[-3000:].decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, anonymous, resident)


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = (line.split() for line in lines if line.startswith(("RssAnon", "VmHWM")))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in found}


def size_of(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def expand_command(source: Path, out: Path, *options: str) -> list[str]:
    """`scaler-wizard expand` as a user runs it."""
    return [sys.executable, "-m", "scaler_tui", "expand", str(source), str(out), *options]


def dd_command(path: Path, size_bytes: int) -> list[str]:
    """The same number of bytes, written and flushed."""
    blocks = -(-size_bytes // (8 << 20))
    return ["dd", "if=/dev/zero", f"of={path}", "bs=8M", f"count={blocks}", "conv=fdatasync"]


def mergekit_command(folder: Path) -> Path | None:
    """`mergekit-yaml` in an environment made for it; None when it cannot be installed."""
    environment = folder / "mergekit"
    program = environment / "bin" / "mergekit-yaml"
    if program.is_file():
        return program
    print(f"installing mergekit {MERGEKIT} into {environment} ...", flush=True)
    version = str(torch.__version__)
    wanted = f"torch=={version.split('+')[0]}"
    steps = (
        [sys.executable, "-m", "venv", str(environment)],
        [str(environment / "bin" / "pip"), "install", "-q", "--retries", "1", wanted, f"mergekit=={MERGEKIT}"],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"mergekit is left out: {done.stderr.strip().splitlines()[-1] if done.stderr else 'failed'}")
            return None
    return program if program.is_file() else None


def passthrough(source: Path, shape: Shape, folder: Path) -> Path:
    """mergekit's configuration of the same growth."""
    parts = "".join(
        f"  - sources:\n    - model: {source}\n      layer_range: [{begin}, {end}]\n" for begin, end in shape.slices
    )
    path = folder / "passthrough.yml"
    path.write_text(f"slices:\n{parts}merge_method: passthrough\ndtype: bfloat16\n")
    return path


# ── the comparison ────────────────────────────────────────────────────────────────────────────────────────────────
def compare(name: str, folder: Path, runs: int, merge: Path | None) -> dict[str, float]:
    """dd, ours and mergekit in turn; prints and returns the ratios."""
    shape = SHAPES[name]
    source = folder / f"source-{name}"
    write_model(source, shape)
    source_bytes = size_of(source)
    costs: dict[str, list[Cost]] = {"dd": [], "ours": [], "mergekit": []}
    written = 0
    config = passthrough(source, shape, folder)
    options = ("--layers", str(shape.layers_after), "--operator", "solar", "--no-proof", "--json")
    for number in range(runs):
        out = folder / "ours"
        costs["ours"].append(measured(expand_command(source, out, *options)))
        written = size_of(out)
        shutil.rmtree(out)
        costs["dd"].append(measured(dd_command(folder / "dd", written)))
        (folder / "dd").unlink()
        if merge is not None:
            out = folder / "merged"
            flags = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
            costs["mergekit"].append(measured([str(merge), str(config), str(out), *flags], HF_HUB_OFFLINE="1"))
            shutil.rmtree(out)
        walls = ", ".join(f"{tool} {values[-1].wall_seconds:.1f} s" for tool, values in costs.items() if values)
        print(f"  run {number + 1}: {walls}", flush=True)
    shutil.rmtree(source)
    print(f"{name}: {shape.layers} -> {shape.layers_after} layers, {source_bytes:,} -> {written:,} bytes, {runs} runs")
    return _summary(costs)


def _summary(costs: dict[str, list[Cost]]) -> dict[str, float]:
    medians = {}
    for tool, values in costs.items():
        if not values:
            continue
        wall, cpu, anonymous, resident = (
            statistics.median(getattr(cost, field) for cost in values)
            for field in ("wall_seconds", "cpu_seconds", "anonymous_bytes", "resident_bytes")
        )
        medians[tool] = (wall, anonymous)
        spread = f"{min(c.wall_seconds for c in values):.1f}-{max(c.wall_seconds for c in values):.1f}"
        print(
            f"  {tool:<9} {wall:6.1f} s ({spread})  cpu {cpu:5.1f} s  "
            f"RssAnon {anonymous / 1e6:7.0f} MB  RSS {resident / 1e6:7.0f} MB"
        )
    ratios = {"dd": medians["ours"][0] / medians["dd"][0]}
    print(f"  ours / dd: {ratios['dd']:.2f} (budget {DISK_BUDGET})")
    if "mergekit" in medians:
        ratios["mergekit"] = medians["ours"][0] / medians["mergekit"][0]
        ratios["anonymous"] = medians["ours"][1] / medians["mergekit"][1]
        print(f"  ours / mergekit: {ratios['mergekit']:.2f} of the time (budget {MERGEKIT_BUDGET})", end=", ")
        print(f"{ratios['anonymous']:.3f} of the anonymous memory (budget {ANONYMOUS_BUDGET})", flush=True)
    return ratios


def start_up() -> float:
    """Median seconds until the surgery is ready, and no torch among what it imported."""
    code = "import sys, engine.surgery.expand; sys.exit(3 if 'torch' in sys.modules else 0)"
    costs = [measured([sys.executable, "-c", code]) for _ in range(5)]
    wall, cpu = (statistics.median(getattr(cost, field) for cost in costs) for field in ("wall_seconds", "cpu_seconds"))
    print(f"start-up of the surgery: {wall:.2f} s, of these {cpu:.2f} s at work (budget 1 s), no torch imported")
    return wall


def flagship(folder: Path, *, proof: bool) -> None:
    """A Phi-3-mini shape (3.8B, random weights) to hidden 4096 and FFN 11008, with its proof."""
    source, out = folder / "phi", folder / "phi-grown"
    write_model(source, PHI, phi=True)
    options = ["--hidden", "4096", "--ffn", "11008", "--json", *([] if proof else ["--no-proof"])]
    cost = measured(expand_command(source, out, *options))
    certificate = json.loads((out / "expansion.json").read_text())
    print(
        f"Phi-3-mini shape: {certificate['parameters_before'] / 1e9:.2f}B -> "
        f"{certificate['parameters_after'] / 1e9:.2f}B, {size_of(out):,} bytes of weights, "
        f"{cost.wall_seconds:.1f} s, cpu {cost.cpu_seconds:.1f} s, own RssAnon {cost.anonymous_bytes / 1e6:.0f} MB, "
        f"own RSS {cost.resident_bytes / 1e6:.0f} MB, with helpers {certificate['peak_rss_bytes'] / 1e6:.0f} MB"
    )
    print(f"  proof: {json.dumps(certificate['proof'])}")
    shutil.rmtree(out)
    shutil.rmtree(source)


def main() -> None:
    """Everything, or what the options name."""
    parser = argparse.ArgumentParser(prog="python -m bench.surgery")
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--phi", action="store_true", help="also the 3.8B flagship with its proof (30 GB, long)")
    parser.add_argument("--only-phi", action="store_true")
    parser.add_argument("--no-proof", action="store_true")
    parser.add_argument("--folder", type=Path, help="where models are made; a temporary folder when left out")
    options, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        start_up()
        if not options.only_phi:
            merge = mergekit_command(options.folder or folder)
            for shape in options.shape or SHAPES:
                compare(shape, folder, options.runs, merge)
        if options.phi or options.only_phi:
            flagship(folder, proof=not options.no_proof)


if __name__ == "__main__":
    main()
