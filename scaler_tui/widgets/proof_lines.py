"""The proof drawn: findings as aligned lines, differences as bars on one logarithmic scale, provenance, files.

Owns layout for a width. Words and figures are `scaler_tui.proof_text`'s; nothing is measured here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from textual.content import Content

from engine.expansion.certificate import Certificate
from engine.units import format_bytes, format_count
from scaler_tui import proof_text
from scaler_tui.proof_text import Finding
from scaler_tui.widgets.status_line import clip, toned

SIGNS = {"good": ("✓", "+"), "warn": ("!", "!"), "bad": ("✗", "x"), "": (" ", " ")}
HASH_CELLS = 12
BESIDE = 64
"""From this width on, meanings stand beside their figures; below it, under them."""
WIDE = 92
"""From here on bars have remarks."""
SMALLEST_BAR = 10


def sign(tone: str, *, unicode: bool) -> str:
    """The mark of a tone; the words beside it say the same."""
    return SIGNS[tone][0 if unicode else 1]


def headline(certificate: Certificate, width: int, *, unicode: bool) -> Content:
    """The verdict, wrapped."""
    found = proof_text.verdict(certificate)
    arrow = " → " if unicode else " -> "
    grown = found.figure.replace(" to ", arrow)
    rest = f"{found.meaning[:1].upper()}{found.meaning[1:]}."
    return Content.assemble(
        toned(f"{sign(found.tone, unicode=unicode)} ", found.tone), toned(f"{found.name}. ", "strong"), f"{grown}\n",
        "\n".join(textwrap.wrap(rest, max(width, 20), initial_indent="  ", subsequent_indent="  ")),
    )  # fmt: skip


def finding_lines(findings: Sequence[Finding], width: int, *, unicode: bool) -> Content:
    """Name, figure, mark and meaning; a narrow screen puts the meaning on a line of its own."""
    if not findings:
        return Content("")
    names = max(len(found.name) for found in findings)
    figures = max(len(found.figure) for found in findings)
    lines: list[Content] = []
    for found in findings:
        head = Content.assemble(
            toned(f"{sign(found.tone, unicode=unicode)} ", found.tone),
            toned(f"{found.name:<{names}}", "quiet"), "  ", toned(f"{found.figure:>{figures}}", "strong"),
        )  # fmt: skip
        indent = names + figures + 6
        if width >= BESIDE:
            first, *rest = textwrap.wrap(found.meaning, max(width - indent, 20), break_on_hyphens=False) or [""]
            lines += [Content.assemble(head, "  ", first), *(Content(" " * indent + text) for text in rest)]
        else:
            under = textwrap.wrap(found.meaning, max(width - 4, 20), break_on_hyphens=False)
            lines += [head, *(toned(f"    {text}", "quiet") for text in under)]
    return Content("\n").join(lines)


def noise_bars(certificate: Certificate, width: int, *, unicode: bool) -> Content:
    """Differences as bars: what growing changed against the noise that bfloat16 brings anyway."""
    rows = proof_text.noises(certificate.proof)
    if not rows:
        return Content("")
    names = max(len(row.name) for row in rows)
    room = width - names - 2
    remarks = width >= WIDE
    cells = max(min(room - 10 - (34 if remarks else 0), 60), SMALLEST_BAR)
    full, tick = ("█", "┆") if unicode else ("#", ":")
    limit = proof_text.noise_cells(proof_text.EXACT_LIMIT, cells)
    lines = []
    for row in rows:
        filled = proof_text.noise_cells(row.relative, cells)
        tone = "busy" if row.name.startswith("source") else "good" if row.relative <= proof_text.EXACT_LIMIT else "warn"
        before, after = full * filled, " " * (cells - filled)
        if filled < limit:
            after = after[: limit - filled - 1] + tick + after[limit - filled :]
        figure = f" {proof_text.figure(row.relative):>8}"
        remark = toned(f"  {row.remark}", "quiet") if remarks and len(row.remark) + 11 + cells <= room else ""
        lines.append(
            Content.assemble(toned(f"{row.name:<{names}}", "quiet"), "  ", toned(before, tone), after, figure, remark)
        )
    limit_text = f"{tick} is the limit {proof_text.EXACT_LIMIT:.0e}"
    scale = f"Shares of the logits' range on a logarithmic scale, 1e-09 to 1; {limit_text}."
    lines += [toned(text, "quiet") for text in textwrap.wrap(scale, max(width, 20))]
    return Content("\n").join(lines)


def operator_lines(certificate: Certificate, width: int) -> Content:
    """What each operator touched, what was copied, and what the operators do not preserve."""
    rows = proof_text.provenance(certificate)
    texts = [
        (row.operator or "copied byte for byte", row.axes, f"{row.tensors:,}", format_count(row.parameters))
        for row in rows
    ]
    lines: list[Content] = []
    if texts:
        names, axes = (max(len(text[column]) for text in texts) for column in (0, 1))
        counts = max(len(text[2]) for text in texts)
        for name, axis, count, parameters in texts:
            axis_cell = f"  {axis:<{axes}}" if axes else ""
            line = f"{name:<{names}}{axis_cell}  {count:>{counts}} tensors  {parameters:>6} parameters"
            if len(line) > width:
                line = f"{name:<{names}}{axis_cell}  {count:>{counts}}  {parameters:>6}"
            lines.append(Content(clip(line.replace(" 1 tensors", " 1 tensor "), width)))
    share = proof_text.new_share(certificate)
    lines.append(toned(f"{share:.0%} of the parameters are new", "quiet"))
    for note in certificate.notes:
        lines += [toned(text, "quiet") for text in textwrap.wrap(note, max(width, 20))]
    return Content("\n").join(lines)


def file_lines(certificate: Certificate, folder: str, width: int) -> Content:
    """Files with size and the beginning of their hash; the whole hashes are in the certificate."""
    sizes = [format_bytes(file.size_bytes) for file in certificate.files]
    cells = max((len(size) for size in sizes), default=0)
    lines = [Content(folder)]
    names = min(max((len(file.name) for file in certificate.files), default=0), width - cells - HASH_CELLS - 13)
    for file, size in zip(certificate.files, sizes, strict=True):
        name = clip(file.name, names)
        lines.append(
            Content.assemble(
                f"  {name:<{names}}  {size:>{cells}}  ", toned(f"sha256 {file.sha256[:HASH_CELLS]}", "quiet")
            )
        )
    lines.append(toned(proof_text.work_line(certificate), "quiet"))
    return Content("\n").join(lines)


def about_lines(certificate: Certificate, width: int) -> Content:
    """Where it came from and what it was measured on."""
    rows = [("source", certificate.source)]
    if certificate.proof is not None:
        rows.append(("proof", proof_text.measured_on(certificate.proof)))
    seed = certificate.plan.get("seed")
    if seed is not None:
        rows.append(("seed", f"{seed}; equal seeds give equal bytes"))
    versions = " ".join(f"{name} {version}" for name, version in certificate.versions.items())
    rows.append(("made by", f"{certificate.program} {versions}".strip()))
    rows.append(("made", certificate.created))
    lines = []
    for label, text in rows:
        if text:
            first, *rest = textwrap.wrap(text, max(width - 9, 20), break_on_hyphens=False)
            lines += [Content.assemble(toned(f"{label:<9}", "quiet"), first), *(Content(f"{'':<9}{t}") for t in rest)]
    return Content("\n").join(lines)
