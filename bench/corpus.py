"""Tokenising and packing large text against the `tokenizers` library alone, on the same text and cores.

`python -m bench.corpus [--megabytes N] [--rounds N]` prints tokens per second of both and their ratio (budget: at least
0.9x); exit code 1 where it is missed. Alone means `encode_batch_fast` over texts that are in memory already, by batches
or in one call, whichever costs less, its results thrown away. Ours begins with a file of JSON lines and ends with
packed sequences: reading, digests, the comparison with an evaluation, shards on the disk, duplicates, order and
positions included. Both load the tokenizer. The text is Python's own library; a tokenizer of usual size is trained on
it. The ratio is the median over rounds, in each of which everything runs once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.corpus.prepare import prepare_corpus
from engine.corpus.tokenizer import all_cores
from engine.jobs.spec_stream import SourceSection, StreamSection
from engine.resources import demo_model_dir, profiles_dir

BUDGET = 0.9
VOCABULARY = 32_000
SEQUENCE_TOKENS = 2048
BATCH_DOCUMENTS = 1000
LONGEST_DOCUMENT = 16_384


def documents(megabytes: float) -> list[str]:
    """Python's library in pieces of at most some kilobytes."""
    found: list[str] = []
    left = int(megabytes * 1e6)
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        for begin in range(0, min(len(text), left), LONGEST_DOCUMENT):
            found.append(text[begin : begin + LONGEST_DOCUMENT])
        left -= len(text)
        if left <= 0:
            break
    return found


def usual_tokenizer(folder: Path, texts: list[str]) -> Path:
    """Byte-level BPE with 32,000 tokens, in a folder of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


def in_batches(folder: Path, texts: list[str]) -> int:
    """The library alone, some documents at a time; returns tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = 0
    for begin in range(0, len(texts), BATCH_DOCUMENTS):
        batch = texts[begin : begin + BATCH_DOCUMENTS]
        tokens += sum(map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False)))
    return tokens


def at_once(folder: Path, texts: list[str]) -> int:
    """The library alone, in one call; returns tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return sum(map(len, tokenizer.encode_batch_fast(texts, add_special_tokens=False)))


def ours(source: Path, tokenizer_dir: Path, evaluation: list[str]) -> int:
    """From the file to packed sequences; returns tokens."""
    with tempfile.TemporaryDirectory() as cache:
        stream = StreamSection(cache=cache)
        sections = [SourceSection(name="text", path=str(source))]
        corpus = prepare_corpus(sections, stream, tokenizer_dir, None, evaluation)
        domain = corpus.domain("text")
        for first in range(0, domain.tokens, SEQUENCE_TOKENS):
            piece = domain.read(first, SEQUENCE_TOKENS)
            assert len(piece.positions()) == len(piece.predicted()) == SEQUENCE_TOKENS
        return corpus.report.sources[0].tokens


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds of all threads, tokens)."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    tokens = work()
    return time.perf_counter() - wall, _cpu_seconds() - cpu, tokens


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def compare(name: str, folder: Path, texts: list[str], source: Path, rounds: int) -> bool:
    """All three in turn; prints them and returns whether the budget is kept."""
    evaluation = (profiles_dir() / "base_text.txt").read_text().splitlines()
    works: dict[str, Callable[[], int]] = {
        "tokenizers, batches": lambda: in_batches(folder, texts),
        "ours": lambda: ours(source, folder, evaluation),
        "tokenizers, at once": lambda: at_once(folder, texts),
    }
    with all_cores():
        works["tokenizers, batches"]()  # threads start
        found: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in works}
        for kind in _interleaved(list(works), rounds):
            found[kind].append(timed(works[kind]))
    walls = {kind: statistics.median(wall for wall, _, _ in runs) for kind, runs in found.items()}
    cpus = {kind: statistics.median(cpu for _, cpu, _ in runs) for kind, runs in found.items()}
    size = sum(map(len, texts)) / 1e6
    for kind, runs in found.items():
        spread = f"{min(wall for wall, _, _ in runs):.2f}-{max(wall for wall, _, _ in runs):.2f}"
        rate = runs[0][2] / walls[kind]
        print(f"  {kind:<20} {walls[kind]:6.2f} s ({spread})  cpu {cpus[kind]:6.2f} s  {rate / 1e6:5.2f} M tokens/s")
    alone = min((kind for kind in cpus if kind != "ours"), key=lambda kind: cpus[kind])
    ratio = statistics.median(one[0] / other[0] for one, other in zip(found[alone], found["ours"], strict=True))
    print(
        f"{name}: {size:.1f} MB, {os.cpu_count()} cores: {ratio:.2f}x of the faster one alone (budget {BUDGET}), "
        f"{cpus[alone] / cpus['ours']:.2f}x by CPU time",
        flush=True,
    )
    return ratio >= BUDGET


def _interleaved(kinds: list[str], rounds: int) -> Iterator[str]:
    """Every kind once per round, each round beginning with another."""
    for number in range(rounds):
        turn = number % len(kinds)
        yield from kinds[turn:] + kinds[:turn]


def main() -> int:
    """Both tokenizers; 1 where one of them misses the budget."""
    parser = argparse.ArgumentParser(prog="python -m bench.corpus")
    parser.add_argument("--megabytes", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=3)
    options, _ = parser.parse_known_args()
    texts = documents(options.megabytes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "text.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        kept = compare(
            f"{VOCABULARY:,} tokens", usual_tokenizer(folder / "usual", texts), texts, source, options.rounds
        )
        kept &= compare("demo tokenizer", demo_model_dir(), texts, source, options.rounds)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
