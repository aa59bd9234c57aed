"""What a longer window is worth, measured: the demo model from 256 to 1,024 tokens by every method, trained and not.

Run with `python -m bench.context [--seeds "1;2"] [--parts "zero-shot;short"] [--arms "a;b"] [--out FILE]`, two to three
hours on two cores; results are appended to FILE piece by piece, so an interrupted benchmark goes on where it stopped.
`--report` turns FILE into the tables and maps of CONTEXT.md; every run ends with the expectations, passed or failed;
exit code 1 when one fails that this model is known to meet.

Everything goes through the program's own code: searches and races by `engine.rotary`, training by `scaler-wizard run`
on specs with [context] (LoRA of rank 16, norms and embeddings learning too), figures by the race's yardstick on the
merged folder as it would be served. Text: "demo-long", whose code words are only known from notes up to 1,000 tokens
back; arms that train on sequences of 256 (PoSE, controls) get documents of that length from the same generator, and, to
show why, pieces of the long ones. All arms of a length of training see about as many tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.context_figures import Figures, figures_of, read_results

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "assets" / "demo" / "model"
SHORT_TEXT = ROOT / "assets" / "demo" / "long" / "short.jsonl"
WINDOW, TARGET = 256, 1024
LENGTHS = (128, 256, 512, 1024)
DEPTHS, PROMPTS, DOCUMENTS = 5, 4, 8
EVALUATIONS = 60
SEARCH_SEED = 1000
"""Added to the search's seed: with the measurement's own it would be fitted to the very needles it is measured by."""
TOKENS_PER_STEP = 1024
RATE = 2e-3
SHORT_STEPS, LONG_STEPS = 30, 120


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train."""

    name: str
    method: str
    """ "none" leaves the rotary embedding as it is."""
    window: str = "full"
    sequence: int = TARGET
    """Tokens of the longest sequence trained on."""
    long_steps: bool = False
    """Whether it is also trained for LONG_STEPS."""
    cut: bool = False
    """Short sequences are long documents cut to pieces, whose notes refer to what was cut off."""


ARMS = (
    Arm("none", "none", long_steps=True),
    Arm("yarn", "yarn", long_steps=True),
    Arm("yarn, PoSE", "yarn", "pose", WINDOW, long_steps=True),
    Arm("none, 256 only", "none", sequence=WINDOW, long_steps=True),
    Arm("yarn, 256 only", "yarn", sequence=WINDOW, long_steps=True),
    Arm("linear", "linear", long_steps=True),
    Arm("linear, PoSE", "linear", "pose", WINDOW),
    Arm("llama3, PoSE", "llama3", "pose", WINDOW, long_steps=True),
    Arm("yarn, mixed window", "yarn", "mixed", long_steps=True),
    Arm("llama3", "llama3", long_steps=True),
    Arm("longrope2", "longrope2", long_steps=True),
    Arm("ntk", "ntk"),
    Arm("ntk-critical", "ntk-critical"),
    Arm("abf", "abf"),
    Arm("by-parts", "by-parts"),
    Arm("yarn, PoSE, cut text", "yarn", "pose", WINDOW, cut=True),
    Arm("none, 256 only, cut text", "none", sequence=WINDOW, cut=True),
)
"""The most telling first: an interrupted benchmark has those."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One arm with one seed."""

    arm: str
    seed: int
    steps: int
    tokens: int
    seconds: float
    """Of the training loop."""
    peak_ram_bytes: int
    """Of the training process, libraries and all."""
    figures: Figures
    part: str = "trained"


# ── the program's own search and race ────────────────────────────────────────────────────────────────────────────
def search(seed: int, scratch: Path) -> dict[str, Any]:
    """LongRoPE2's search; the result line, with the seeds' scores by both objectives."""
    import msgspec

    from engine.rotary.search import SearchRequest
    from engine.rotary.search import search as run_search

    log = scratch / f"search-{seed}.jsonl"
    request = SearchRequest(
        folder=DEMO, target=TARGET, log=log, evaluations=EVALUATIONS, seed=SEARCH_SEED + seed, name="demo"
    )
    trajectory: list[float] = []

    def tell(line: Any) -> None:
        if hasattr(line, "evaluation"):
            trajectory.append(round(line.best, 6))

    found = run_search(request, tell)
    return {"part": "search", "seed": seed, **msgspec.to_builtins(found), "trajectory": trajectory}


def zero_shot(seed: int, searched: dict[str, Any], scratch: Path) -> Iterator[dict[str, Any]]:
    """Every method in one race, the searched divisors among them: a line per method, and the choice."""
    from engine.context.method import Options
    from engine.context.methods import METHODS
    from engine.rotary.race import RaceRequest, race

    found = race(
        RaceRequest(
            folder=DEMO,
            target=TARGET,
            methods=tuple(name for name in METHODS if name != "longrope"),  # it would carry the same divisors
            lengths=LENGTHS,
            depths=DEPTHS,
            prompts=PROMPTS,
            documents=DOCUMENTS,
            options=Options(
                long_divisors=tuple(searched["divisors"]), attention_factor=searched["attention_factor"] or None
            ),
            seed=seed,
            name="demo",
            log=scratch / f"race-{seed}.jsonl",
        ),
        lambda line: None,
    )
    for row in found.rows:
        if not row.problem:
            yield {"part": "zero-shot", "seed": seed, "method": row.method, "figures": asdict(figures_of(row.report))}
    assert found.decided is not None
    yield {"part": "choice", "seed": seed, "method": found.decided.method, "reason": found.decided.reason}


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────
def spec_of(arm: Arm, seed: int, steps: int, source: str, factors: Path | None) -> str:
    """The job's spec.toml."""
    context = ["train_embeddings = true"]
    if arm.method != "none":
        context += [f"length = {TARGET}", f'method = "{arm.method}"', f'window = "{arm.window}"']
    if factors is not None:
        context.append(f'factors = "{factors}"')
    if arm.window != "full":
        context.append(f"train_length = {WINDOW}")
    longest = TARGET if arm.window == "mixed" else arm.sequence
    text = "demo-long" if longest > WINDOW or arm.cut else SHORT_TEXT
    lines = [
        'task = "lora"',
        f'name = "{arm.name}"',
        "[model]",
        f'source = "{source}"',
        "[data]",
        f'train = "{text}"',
        'heldout = ""',
        "heldout_fraction = 0.0",
        'base_text = ""',
        f"max_length = {longest}",
        "packing = false",
        "[training]",
        f"max_steps = {steps}",
        "batch_size = 1",
        f"tokens_per_step = {TOKENS_PER_STEP}",
        f"learning_rate = {RATE}",
        'schedule = "constant"',
        "warmup_ratio = 0.05",
        f"seed = {seed}",
        f"threads = {os.environ.get('OMP_NUM_THREADS', '0')}",
        "[evaluation]",
        "exact_match_rows = 0",
        f"lengths = [{LENGTHS[0]}]",
        "needle_prompts = 0",
        "[checkpoint]",
        "every_steps = 100000",
        "[output]",
        "merge = true",
        "[context]",
        *context,
    ]
    return "\n".join(lines) + "\n"


def promised(folder: Path) -> Path:
    """The demo model whose config says 1,024 and changes nothing else: what training without any method starts from."""
    if not folder.exists():
        shutil.copytree(DEMO, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": TARGET}))
    return folder


def train(arm: Arm, seed: int, steps: int, searched: dict[str, Any], scratch: Path) -> Trained:
    """Run the job in a home of its own, measure the merged folder, throw the run away."""
    home = scratch / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    source = str(promised(scratch / "promised")) if arm.method == "none" and arm.sequence > WINDOW else "demo"
    factors = None
    if arm.method == "longrope2":
        factors = home / "config.json"
        found = {"long_factor": searched["divisors"], "attention_factor": searched["attention_factor"]}
        factors.write_text(json.dumps({"rope_parameters": {"rope_type": "longrope", **found}}))
    (home / "spec.toml").write_text(spec_of(arm, seed, steps, source, factors))
    ended = subprocess.run(
        [sys.executable, "-m", "scaler_tui", "run", str(home / "spec.toml"), "--force"],
        env=os.environ | {"SCALER_WIZARD_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError(f"{arm.name}: exit {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
    (run,) = (home / "runs").iterdir()
    card = json.loads((run / "card.json").read_text())
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines() if line.strip()]
    peak = max(event["peak_bytes"] for event in events if event["kind"] == "memory")
    figures = measure(run / "output" / "merged", seed)
    shutil.rmtree(home, ignore_errors=True)
    return Trained(arm.name, seed, steps, card["tokens"], card["training_seconds"], peak, figures)


def measure(folder: Path, seed: int) -> Figures:
    """The race's yardstick on a folder as plain transformers loads it."""
    from engine.evaluation.calibration import Calibration
    from engine.evaluation.haystack import even_depths
    from engine.evaluation.haystack_frame import NOTES
    from engine.evaluation.length_memory import room_for
    from engine.evaluation.length_text import load_text
    from engine.evaluation.loading import loaded
    from engine.evaluation.progress import Meter, silent
    from engine.jobs.length_report import LengthReport
    from engine.rotary.yardstick import Amounts, new_yardstick

    with loaded(folder) as model:
        text = load_text(model.tokenizer, "demo", TARGET, DOCUMENTS)
        style = Calibration(style=NOTES, accuracy=1.0, length=WINDOW)
        amounts = Amounts(LENGTHS, even_depths(DEPTHS), PROMPTS, seed)
        yardstick = new_yardstick(model, text, WINDOW, style, room_for(model, TARGET), amounts)
        blank = LengthReport(model="demo", window=TARGET, original=WINDOW)
        *_, report = yardstick.reports(blank, None, Meter(silent, 0))
        return figures_of(report)


def kept_bytes(sequence: int) -> int:
    """Bytes that autograd keeps between forward and backward of one sequence, weights and what they share left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(sequence)[None] % 1000
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    del loss
    return sum(kept.values())


# ── the benchmark ────────────────────────────────────────────────────────────────────────────────────────────────
def main() -> int:
    """Measure what is missing, or report; 1 when an expectation fails that holds on this model."""
    parser = argparse.ArgumentParser(prog="python -m bench.context")
    parser.add_argument("--seeds", default="1;2;3", help="which, as 1;2;3")
    parser.add_argument("--parts", default="zero-shot;memory;short;long")
    parser.add_argument("--arms", default="", help="names with ; between; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "context.jsonl")
    parser.add_argument("--report", action="store_true", help="write CONTEXT.md's tables from the file")
    options = parser.parse_args(sys.argv[1:] if Path(sys.argv[0]).name == "context.py" else [])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    from bench.context_report import print_expectations, write_report

    if options.report:
        write_report(options.out)
    else:
        run(options)
    return 0 if print_expectations(options.out) else 1


def run(options: argparse.Namespace) -> None:
    """Every piece that the file does not have yet, appended as it is done."""
    parts, seeds = options.parts.split(";"), [int(seed) for seed in options.seeds.split(";")]
    wanted = [arm for arm in ARMS if not options.arms or arm.name in options.arms.split(";")]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "memory" in parts:
            _memory(options.out)
        for seed in seeds:
            searched = _searched(seed, options.out, scratch)
            if "zero-shot" in parts and not _has(options.out, part="choice", seed=seed):
                for line in zero_shot(seed, searched, scratch):
                    _append(options.out, line)
            for steps, chosen in (
                (SHORT_STEPS, wanted if "short" in parts else []),
                (LONG_STEPS, [arm for arm in wanted if arm.long_steps] if "long" in parts else []),
            ):
                for arm in chosen:
                    if not _has(options.out, part="trained", arm=arm.name, seed=seed, steps=steps):
                        _trained(arm, seed, steps, searched, scratch, options.out)


def _trained(arm: Arm, seed: int, steps: int, searched: dict[str, Any], scratch: Path, out: Path) -> None:
    """A run that fails is said and left for the next time; the others go on."""
    try:
        _append(out, asdict(train(arm, seed, steps, searched, scratch)))
    except RuntimeError as error:
        print(error, flush=True)


def _memory(out: Path) -> None:
    for sequence in (WINDOW, TARGET):
        if not _has(out, part="memory", sequence=sequence):
            _append(out, {"part": "memory", "sequence": sequence, "kept_bytes": kept_bytes(sequence)})


def _searched(seed: int, out: Path, scratch: Path) -> dict[str, Any]:
    found = [line for line in read_results(out) if line["part"] == "search" and line["seed"] == seed]
    if not found:
        found = [search(seed, scratch)]
        _append(out, found[0])
    return found[0]


def _has(out: Path, **wanted: Any) -> bool:
    return any(all(line.get(key) == value for key, value in wanted.items()) for line in read_results(out))


def _append(out: Path, line: dict[str, Any]) -> None:
    with out.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    told = {key: value for key, value in line.items() if key in ("part", "seed", "method", "arm", "steps", "sequence")}
    print(time.strftime("%H:%M:%S"), told, flush=True)


if __name__ == "__main__":
    sys.exit(main())
