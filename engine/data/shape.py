"""A data report as the estimates see it: exact token counts, padding after packing, what is held out.

Owns that translation. Must not know devices.
"""

from __future__ import annotations

from engine.data.summary import DataReport
from engine.estimate.data_shape import DataShape, LengthCount, packed_shape, padded_shape


def data_shape(report: DataReport, *, batch_size: int) -> DataShape:
    """The counted shape of one epoch in micro-batches of `batch_size`."""
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
        heldout_tokens=heldout,
        base_tokens=float(report.base_text.tokens) if report.base_text else 0.0,
    )


def _mean(report: DataReport) -> float:
    return report.train.tokens / report.train.rows_kept if report.train.rows_kept else 0.0


def _middle(low: int, high: int, max_length: int) -> float:
    """The middle of a bin of uncut lengths, cut."""
    return min((low + high) / 2, float(max_length))
