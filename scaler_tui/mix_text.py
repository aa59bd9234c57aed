"""The report of a mix as lines of text.

Owns wording and alignment. Must not know how a mix is made.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.data.long_report import DomainReport, LengthBin, MixReport, Place
from engine.units import format_count

_BAR_CELLS = 24


def mix_lines(report: MixReport) -> Iterator[str]:
    """Everything, the outcome first."""
    yield f"Wrote     {report.output}"
    yield f"Model     {report.model}, whose tokenizer counted; it reads {report.window:,} tokens"
    yield f"Target    {report.context:,} tokens"
    yield from made_lines(report)
    yield ""
    yield f'Train on it: data.train = "{report.output}", context.length = {report.context}'


def made_lines(report: MixReport) -> Iterator[str]:
    """What became of every document; where the file lies and what to do with it is left out."""
    yield f"Mix       {report.rows:,} rows of {report.documents:,} documents, {report.tokens:,} tokens"
    yield (
        f"Long      {report.long_share:.0%} of the tokens in rows of at least {report.long_from:,} "
        f"({report.long_share_asked:.0%} asked for)"
    )
    yield from _lost(report)
    for warning in report.warnings:
        yield f"  ! {warning}"
    for domain in report.domains:
        yield from _domain(domain)


def _lost(report: MixReport) -> Iterator[str]:
    cut = report.cut
    yield f"Cut       {cut.documents:,} documents longer than the target, into {cut.pieces:,} pieces" + (
        f"; {cut.dropped_pieces:,} remainders ({cut.dropped_tokens:,} tokens) dropped" if cut.dropped_pieces else ""
    )
    yield f"Unused    {report.unused_documents:,} documents ({report.unused_tokens:,} tokens), no room in their share"
    for dropped in report.dropped:
        places = "; ".join(_place(place) for place in dropped.examples[:3])
        yield f"Dropped   {dropped.documents:,} documents: {dropped.reason} ({places})"


def _place(place: Place) -> str:
    where = f"{place.file} line {place.line}" if place.line else place.file
    return f"{where}: {place.detail}" if place.detail else where


def _domain(domain: DomainReport) -> Iterator[str]:
    kind = "" if domain.role == "long" else " (short text)"
    yield ""
    yield (
        f"{domain.name}{kind}: {domain.documents:,} documents, {format_count(domain.tokens)} tokens "
        f"({domain.share_before:.0%}) -> {domain.rows:,} rows, {format_count(domain.used_tokens)} tokens "
        f"({domain.share_after:.0%})"
        + (f"; {domain.repeated_documents:,} documents repeated" if domain.repeated_documents else "")
    )
    yield f"  {'tokens':<18}{'documents':>10} {'share':>6}   {'rows':>8} {'share':>6}"
    for before, after in zip(domain.before, domain.after, strict=True):
        if before.count or after.count:
            yield _bin(before, after, domain)


def _bin(before: LengthBin, after: LengthBin, domain: DomainReport) -> str:
    name = f"{before.start:,}-{before.end - 1:,}" if before.end else f"{before.start:,} and more"
    share = before.tokens / domain.tokens if domain.tokens else 0.0
    used = after.tokens / domain.used_tokens if domain.used_tokens else 0.0
    bar = "#" * round(_BAR_CELLS * used)
    return f"  {name:<18}{before.count:>10,} {share:>6.0%}   {after.count:>8,} {used:>6.0%}  {bar}".rstrip()
