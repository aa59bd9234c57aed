"""A data report as the estimates see it: exact token counts, padding after packing, what is held out.

Owns that translation. Must not know devices.
"""

from __future__ import annotations

from engine.data.load import resolve_file
from engine.data.summary import DataReport
from engine.estimate.data_shape import DataShape, LengthCount, packed_shape, padded_shape

BYTES_PER_BASE_TOKEN = 4.5
"""Of the text that forgetting is measured on, where nobody has counted it: 3.4 kB of plain English ship with the
program, the demo's rows have 4.9 with their JSON."""


def data_shape(report: DataReport, *, batch_size: int, base_text: str = "") -> DataShape:
    """The counted shape of one epoch in micro-batches of `batch_size`.

    `base_text` is the spec's: a survey does not read that file, so its tokens come from its size.
    """
    tokens = float(report.train.tokens)
    if report.packing:
        fill, width = packed_shape(tokens, report.sequences, report.max_length)
    else:
        counts = [LengthCount(_middle(b.low, b.high, report.max_length), b.rows) for b in report.lengths if b.rows]
        fill, width = padded_shape(counts, batch_size)
    mean_row = tokens / report.sequences if report.sequences and not report.packing else _mean(report)
    heldout = float(report.heldout.tokens) if report.heldout else report.heldout_rows * mean_row
    return DataShape(
        tokens=(tokens, tokens, tokens),
        trained_share=min(max(report.train.trained_share, 1e-3), 1.0),
        fill=fill,
        width=min(width, report.max_length),
        row_tokens=_mean(report),
        heldout_tokens=heldout,
        base_tokens=float(report.base_text.tokens) if report.base_text else _base_tokens(base_text),
    )


def _base_tokens(source: str) -> float:
    if not source:
        return 0.0
    try:
        return resolve_file(source, "base_text").stat().st_size / BYTES_PER_BASE_TOKEN
    except OSError:
        return 0.0


def _mean(report: DataReport) -> float:
    return report.train.tokens / report.train.rows_kept if report.train.rows_kept else 0.0


def _middle(low: int, high: int, max_length: int) -> float:
    """The middle of a bin of uncut lengths, cut."""
    return min((low + high) / 2, float(max_length))
