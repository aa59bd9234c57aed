"""The data report as lines of text, for the screen and for `data check` alike.

Owns wording and alignment. Takes the report's JSON form, because the screen gets it from another process.
"""

from __future__ import annotations

from typing import Any

_BAR_CELLS = 28


def report_lines(report: dict[str, Any], *, bar: str = "#") -> list[str]:
    """Everything but the mask view."""
    train = report["train"]
    lines = [
        f"File        {train['path']}",
        f"Format      {train['format']}; rows: "
        + (", ".join(f"{count:,} {kind}" for kind, count in train["kinds"].items()) or "none understood"),
        f"Rows        {train['rows_kept']:,} kept, {train['rows_dropped']:,} dropped, "
        f"{train['rows_truncated']:,} cut at {report['max_length']} tokens",
        f"Tokens      {train['tokens']:,}, of which {train['trained_tokens']:,} carry loss "
        f"({_share(train['trained_tokens'], train['tokens'])}; loss on {report['train_on']})",
        f"Sequences   {report['sequences']:,} an epoch, {'packed' if report['packing'] else 'padded'}, "
        f"{report['fill']:.0%} full",
        f"Held-out    {report['heldout_rows']:,} rows; {report['contaminated']:,} of them are also training rows",
        f"Template    {report['template_origin']}",
        f"SHA-256     {train['sha256']}",
    ]
    lines += _dropped(train) + _cut(train)
    if report["warnings"]:
        lines += ["", "To look at"] + [f"  ! {warning}" for warning in report["warnings"]]
    lines += ["", "Length of rows in tokens", *_histogram(report["lengths"], bar)]
    if report["duplicates"]:
        places = "; ".join(f"{train['located_by']} {d['line']} {d['detail']}" for d in report["duplicate_examples"])
        lines += ["", f"Duplicates  {report['duplicates']:,}: {places}"]
    return lines


def mask_rows(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(heading, [(text, carries loss)]) for each sample row, neighbours of one kind joined."""
    rows = []
    for sample in report["samples"]:
        runs: list[tuple[str, bool]] = []
        for token in sample["tokens"]:
            text, trained = token["text"], token["trained"]
            if runs and runs[-1][1] == trained:
                runs[-1] = (runs[-1][0] + text, trained)
            else:
                runs.append((text, trained))
        hidden = f", {sample['tokens_hidden']:,} more tokens" if sample["tokens_hidden"] else ""
        rows.append((f"{report['train']['located_by']} {sample['line']}{hidden}", runs))
    return rows


def plain_text(report: dict[str, Any]) -> str:
    """The whole report for a terminal without colours: what carries loss stands in [brackets]."""
    lines = [*report_lines(report), "", "Sample rows; tokens in [brackets] carry loss"]
    for heading, runs in mask_rows(report):
        lines.append(f"  {heading}: " + "".join(f"[{text}]" if trained else text for text, trained in runs))
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _dropped(train: dict[str, Any]) -> list[str]:
    lines = []
    for group in train["dropped"]:
        lines.append(f"  dropped {group['rows']:,}: {group['text']}")
        lines += [f"    {train['located_by']} {place['line']}: {place['detail']}" for place in group["examples"]]
    return lines


def _cut(train: dict[str, Any]) -> list[str]:
    if not train["rows_truncated"]:
        return []
    places = "; ".join(f"{train['located_by']} {place['line']}: {place['detail']}" for place in train["truncated"])
    return [f"  cut {train['rows_truncated']:,} rows, {train['tokens_cut']:,} tokens lost: {places}"]


def _histogram(bins: list[dict[str, int]], bar: str) -> list[str]:
    most = max((entry["rows"] for entry in bins), default=0)
    if not most:
        return ["  no rows"]
    width = max(len(f"{entry['low']}-{entry['high']}") for entry in bins)
    return [
        f"  {entry['low']}-{entry['high']}".ljust(width + 4)
        + (bar * max(round(entry["rows"] / most * _BAR_CELLS), 1 if entry["rows"] else 0)).ljust(_BAR_CELLS + 1)
        + f"{entry['rows']:,}"
        for entry in bins
    ]
