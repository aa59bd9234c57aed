"""A training mix for longer windows: long documents sampled more inside each domain, short text beside them.

Owns the request, the order of the two readings, and the file, which appears whole or not at all. Must not know torch,
nor how the mix is trained on.

The long share and the length up-sampling within domains follow Fu et al. (arXiv 2402.10171) and ProLong
(arXiv 2410.02660), which mixes 60 % long with 40 % short.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from engine.data.long_budget import MOST_REPEATS, Budget, Supply, chosen, proportions, shared
from engine.data.long_catalogue import Catalogue, Progress, Reader
from engine.data.long_documents import Lost, MixSource, documents
from engine.data.long_pieces import TokenCounter
from engine.data.long_report import DomainReport, Histogram, MixReport
from engine.data.long_rows import LEAST_REMAINDER_TOKENS, RowMaker, new_file, require_writable
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError

LONG_PART = 2
"""A document is long from half the target on."""


@dataclass(frozen=True, slots=True)
class MixRequest:
    """What is wanted."""

    sources: tuple[MixSource, ...]
    output: Path
    context: int
    """Target length, tokens."""
    model_dir: Path
    """Whose tokenizer counts."""
    model: str = ""
    window: int = 0
    """The model's present window, for the report."""
    short: tuple[MixSource, ...] = ()
    """Text of the usual length; empty: the sources' own short documents."""
    long_share: float = 0.6
    tokens: int = 0
    """0: so many that every long document is used once."""
    seed: int = 17


@dataclass(slots=True)
class _Domain:
    """One source on its way into the mix."""

    catalogue: Catalogue
    role: str
    long: list[int]
    short: list[int]
    counts: array[int] = field(default_factory=lambda: array("H"))
    after: Histogram = field(default_factory=lambda: Histogram(1))
    rows: int = 0
    row_tokens: int = 0
    long_row_tokens: int = 0

    def total(self, places: list[int]) -> int:
        return sum(self.catalogue.tokens[place] for place in places)


def build_mix(request: MixRequest, progress: Progress | None = None) -> MixReport:
    """Write the mix and tell what is in it.

    Raises EngineError `mix.*` for what cannot be mixed, `data.*` for files that cannot be read, `model.no_tokenizer`,
    `file.exists`, `file.unwritable`, `disk.full`.
    """
    _check(request)
    require_writable(request.output)
    counter = TokenCounter(ChatTokenizer.load(request.model_dir))
    return _Mix(request, counter, progress).run()


def _check(request: MixRequest) -> None:
    if not 0.0 < request.long_share <= 1.0:
        raise EngineError(
            "mix.share",
            f"{request.long_share:g} is no share of long documents.",
            next_step="Give --long-share above 0 and at most 1, for example 0.6.",
        )
    if request.context < 2 * LEAST_REMAINDER_TOKENS:
        raise EngineError(
            "mix.context",
            f"{request.context} tokens are no longer window.",
            next_step=f"Give --context of at least {2 * LEAST_REMAINDER_TOKENS}, for example 32k.",
        )
    if request.output.exists():
        raise EngineError(
            "file.exists",
            f"{request.output} exists already and is left as it is.",
            next_step="Choose another name, or remove that file first.",
        )


class _Mix:
    def __init__(self, request: MixRequest, counter: TokenCounter, progress: Progress | None) -> None:
        self.request = request
        self.reader = Reader(counter, progress)
        self.maker = RowMaker(counter, request.context)
        self.long_from = max(request.context // LONG_PART, 1)
        self.warnings: list[str] = []

    def run(self) -> MixReport:
        domains = [self._domain(source, "long") for source in self.request.sources]
        domains += [self._domain(source, "short") for source in self.request.short]
        self._require_documents(domains)
        for domain, budget in zip(domains, self._budgets(domains), strict=True):
            self._choose(domain, budget)
        with new_file(self.request.output) as file:
            for domain in domains:
                self._write(domain, file)
            if not any(domain.rows for domain in domains):
                raise EngineError(
                    "mix.empty", "No document is left for the mix.", next_step="Give more text, or a smaller target."
                )
        return self._report(domains)

    # ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────
    def _domain(self, source: MixSource, role: str) -> _Domain:
        found = self.reader.read(source)
        long = [place for place in found.usable if found.tokens[place] >= self.long_from] if role == "long" else []
        inside = set(long)
        short = [place for place in found.usable if place not in inside]
        return _Domain(found, role, long, short, after=Histogram(self.request.context))

    def _require_documents(self, domains: list[_Domain]) -> None:
        longest = max((max(d.catalogue.tokens, default=0) for d in domains if d.role == "long"), default=0)
        if not longest:
            dropped = self.reader.drops.report()
            causes = "; ".join(f"{item.documents:,} documents: {item.reason}" for item in dropped)
            raise EngineError(
                "mix.no_documents",
                "The sources hold no usable document.",
                cause=causes,
                next_step="Name text files, .jsonl files with a text field, or folders of them.",
            )
        context = self.request.context
        if longest < self.long_from:
            raise EngineError(
                "mix.too_short",
                f"No document is long enough for {context:,} tokens: the longest has {longest:,}.",
                cause=f"A mix needs documents of at least {self.long_from:,} tokens, half the target.",
                next_step=f"Ask for less (--context {longest}), give whole books, repositories or chats as one "
                'document each, or train with context.window = "pose", which reaches the target from short texts.',
            )
        if longest < context:
            self.warnings.append(
                f"The longest document has {longest:,} tokens: nothing shows the model what lies beyond them. "
                f'Give longer ones, a smaller target, or train with context.window = "pose".'
            )

    # ── what is taken ─────────────────────────────────────────────────────────────────────────────────────────────
    def _budgets(self, domains: list[_Domain]) -> tuple[Budget, ...]:
        request, beside = self.request, bool(self.request.short)
        own = [domain for domain in domains if domain.role == "long"]
        long_tokens = sum(domain.total(domain.long) for domain in own)
        own_share = request.long_share if beside else 1.0
        sizes = [float(d.total(d.long) + (0 if beside else d.total(d.short))) for d in own]
        shares = [own_share * part for part in proportions(sizes, [d.catalogue.source.weight for d in own])]
        others = domains[len(own) :]
        short_sizes = [float(d.total(d.short)) for d in others]
        short_weights = [d.catalogue.source.weight for d in others]
        shares += [(1 - own_share) * part for part in proportions(short_sizes, short_weights)]
        total = float(request.tokens) or self._usual_total(own, shares, long_tokens)
        repeats = MOST_REPEATS if request.tokens else 1
        supplies = [
            Supply(
                long=float(domain.total(domain.long) * repeats),
                short=0.0 if beside and domain.role == "long" else self._short(domain, repeats),
                proportion=share,
            )
            for domain, share in zip(domains, shares, strict=True)
        ]
        budgets = shared(total, request.long_share, supplies)
        reached = sum(budget.long + budget.short for budget in budgets)
        if reached < 0.95 * total:
            self.warnings.append(
                f"There is text for {reached:,.0f} of the {total:,.0f} tokens, with every document used at most "
                f"{MOST_REPEATS} times."
            )
        return budgets

    def _short(self, domain: _Domain, repeats: int) -> float:
        """Text that was named as short may repeat in any case: the share is worth more."""
        return float(domain.total(domain.short) * (MOST_REPEATS if domain.role == "short" else repeats))

    def _usual_total(self, own: list[_Domain], shares: list[float], long_tokens: int) -> float:
        """Every long document once; of sources that give their own short text no domain more than it has."""
        wanted = long_tokens / self.request.long_share
        if self.request.short:
            return wanted
        limits = [
            (d.total(d.long) + d.total(d.short)) / share for d, share in zip(own, shares, strict=False) if share > 0
        ]
        return min(wanted, *limits)

    def _choose(self, domain: _Domain, budget: Budget) -> None:
        rng = random.Random(f"{self.request.seed} {domain.role} {domain.catalogue.source.path}")
        tokens = domain.catalogue.tokens
        long = chosen(tokens, domain.long, budget.long, rng)
        short = chosen(tokens, domain.short, budget.short, rng)
        domain.counts = array("H", (a + b for a, b in zip(long, short, strict=True)))

    # ── what is written ───────────────────────────────────────────────────────────────────────────────────────────
    def _write(self, domain: _Domain, file: IO[bytes]) -> None:
        found = domain.catalogue
        place = -1
        for place, item in enumerate(documents(found.source)):
            times = domain.counts[place] if place < len(domain.counts) else 0
            if not times:
                continue
            if isinstance(item, Lost):
                raise _changed(item.file)
            for row in self.maker.rows(item, found.tokens[place], found.source.name):
                file.write(row.line * times)
                domain.rows += times
                domain.row_tokens += row.tokens * times
                domain.long_row_tokens += row.tokens * times if row.tokens >= self.long_from else 0
                domain.after.add(row.tokens, times)
        if place + 1 != len(found.tokens):
            raise _changed(found.source.path)

    # ── what is told ──────────────────────────────────────────────────────────────────────────────────────────────
    def _report(self, domains: list[_Domain]) -> MixReport:
        request = self.request
        tokens = sum(domain.row_tokens for domain in domains)
        long = sum(domain.long_row_tokens for domain in domains)
        everything = sum(domain.total(domain.catalogue.usable) for domain in domains)
        unused = [(d, [p for p in d.catalogue.usable if not d.counts[p]]) for d in domains]
        share = long / tokens if tokens else 0.0
        self._warn(domains, share)
        return MixReport(
            output=str(request.output),
            model=request.model,
            window=request.window,
            context=request.context,
            long_from=self.long_from,
            long_share_asked=request.long_share,
            long_share=share,
            seed=request.seed,
            documents=sum(1 for domain in domains for count in domain.counts if count),
            rows=sum(domain.rows for domain in domains),
            tokens=tokens,
            domains=tuple(self._domain_report(domain, everything, tokens) for domain in domains),
            cut=self.maker.cut,
            duplicates=self.reader.duplicates,
            duplicate_tokens=self.reader.duplicate_tokens,
            dropped=(*self.reader.drops.report(), *self.maker.drops.report()),
            unused_documents=sum(len(places) for _, places in unused),
            unused_tokens=sum(domain.total(places) for domain, places in unused),
            warnings=tuple(self.warnings),
        )

    def _warn(self, domains: list[_Domain], share: float) -> None:
        if abs(share - self.request.long_share) > 0.1:
            why = "short" if share > self.request.long_share else "long"
            self.warnings.append(
                f"{share:.0%} of the tokens are in long rows, {self.request.long_share:.0%} were asked for: there is "
                f"too little {why} text" + (" (mix --short adds some)." if why == "short" else ".")
            )
        for domain in domains:
            if domain.role == "long" and not domain.long:
                self.warnings.append(f"{domain.catalogue.source.name} has no long document.")

    def _domain_report(self, domain: _Domain, everything: int, mixed: int) -> DomainReport:
        found, before = domain.catalogue, Histogram(self.request.context)
        for place in found.usable:
            before.add(found.tokens[place])
        tokens = domain.total(found.usable)
        return DomainReport(
            name=found.source.name,
            path=str(found.source.path),
            role=domain.role,
            weight=found.source.weight,
            files=found.files,
            documents=len(found.usable),
            tokens=tokens,
            longest=max(found.tokens, default=0),
            long_documents=len(domain.long),
            long_tokens=domain.total(domain.long),
            share_before=tokens / everything if everything else 0.0,
            share_after=domain.row_tokens / mixed if mixed else 0.0,
            used_documents=sum(1 for count in domain.counts if count),
            repeated_documents=sum(1 for count in domain.counts if count > 1),
            rows=domain.rows,
            used_tokens=domain.row_tokens,
            used_long_tokens=domain.long_row_tokens,
            before=before.bins(),
            after=domain.after.bins(),
        )


def _changed(path: Path) -> EngineError:
    return EngineError(
        "mix.changed",
        f"{path} changed while it was read.",
        next_step="Run the command again when nothing writes to it.",
    )
