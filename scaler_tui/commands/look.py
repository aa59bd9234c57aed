"""Subcommands that look and compare, and start nothing: doctor, inspect, matrix, plan, data check.

Owns their text and JSON. Must not compute: every figure comes from the engine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from engine.units import format_bytes, format_count, format_hours, format_range, format_usd
from scaler_tui import output

if TYPE_CHECKING:
    from engine.advise.session import Session
    from engine.hardware.machine import Machine


def machine_for(gpu: str) -> Machine:
    """This machine, or the what-if that `gpu` names."""
    from engine.hardware.detect import detect
    from engine.hardware.simulate import simulate

    machine = detect()
    return simulate(gpu, machine) if gpu else machine


def doctor(arguments: argparse.Namespace) -> int:
    """The machine, the libraries and what will be in the way."""
    from engine.hardware.doctor import raw_outputs, report

    machine = machine_for(arguments.gpu)
    if arguments.json:
        document = report(machine)
        if arguments.raw:
            document["raw"] = raw_outputs()
        output.emit_json(document)
        return int(ExitCode.DONE)
    output.say(f"Machine   {machine.label}" + ("  (SIM: simulated, not this machine)" if machine.simulated else ""))
    for gpu in machine.gpus:
        output.say(
            f"GPU {gpu.index}     {gpu.name}: {format_bytes(gpu.free_vram_bytes)} free of "
            f"{format_bytes(gpu.vram_bytes)}  [{gpu.source}]"
        )
    if not machine.gpus:
        output.say("GPU       none: small models train on the CPU; or plan for a card with --gpu")
    output.say(f"CPU       {machine.cpu.name}, {machine.cpu.cores} cores")
    output.say(
        f"RAM       {format_bytes(machine.ram.available_bytes)} available of "
        f"{format_bytes(machine.ram.total_bytes)}  [{machine.ram.source}]"
    )
    for disk in machine.disks:
        output.say(f"Disk      {format_bytes(disk.free_bytes)} free for {disk.purpose}: {disk.path}")
    output.say(
        "Libraries " + ", ".join(f"{name} {version or 'missing'}" for name, version in machine.libraries.items())
    )
    for problem in machine.problems:
        output.say(f"Problem   {problem.where}: {problem.what}")
        output.say(f"          Next: {problem.next_step}")
    if not machine.problems:
        output.say("Problems  none found")
    if arguments.raw:
        for name, text in raw_outputs().items():
            output.say(f"\n--- {name}\n{text.rstrip()}")
    return int(ExitCode.DONE)


def inspect(arguments: argparse.Namespace) -> int:
    """A model's architecture."""
    from engine.models.analyze import analyze

    found = analyze(arguments.model, revision=arguments.revision)
    if arguments.json:
        output.emit_json(found)
        return int(ExitCode.DONE)
    moe = found.moe
    lines = [
        ("Model", f"{found.name} ({found.architecture}, family {found.family}{'' if found.known else ', unknown'})"),
        ("Parameters", f"{format_count(found.parameters)} ({found.parameters:,}; from {found.parameters_source})"),
        ("Layers", f"{found.layers}, hidden {found.hidden_size:,}, FFN {found.intermediate_size:,} ({found.mlp_kind})"),
        ("Attention", f"{found.attention_heads} heads, {found.key_value_heads} key/value heads of {found.head_dim}"),
        ("Vocabulary", f"{found.vocab_size:,}, embeddings {'tied' if found.tied_embeddings else 'not tied'}"),
        ("Context", f"{found.context_length:,} tokens, RoPE {found.rope.kind}, base {found.rope.theta:g}"),
        ("Norm", f"{found.norm}, {found.norm_placement}, QK-norm {found.qk_norm}"),
    ]
    if moe is not None:
        lines.append(
            ("Experts", f"{moe.experts}, {moe.experts_per_token} per token, FFN {moe.expert_intermediate_size:,}")
        )
    for label, text in lines:
        output.say(f"{label:<11} {text}")
    for text in found.notes:
        output.say(f"{'Note':<11} {text}")
    return int(ExitCode.DONE)


def answered_session(arguments: argparse.Namespace) -> Session:
    """A session with the answers given as flags. Raises EngineError for a value a question does not accept."""
    from engine.advise.questions import load_graph, parse_answer
    from engine.advise.session import Session

    graph = load_graph()
    given = {"model": arguments.model}
    for question in graph.questions:
        text = getattr(arguments, f"answer_{question.id}", None)
        if text is not None:
            given[question.id] = parse_answer(question, text)
    return Session(graph, given)


def matrix(arguments: argparse.Namespace) -> int:
    """Every approach on this machine."""
    from engine.advise.compare import build_matrix, to_json
    from engine.advise.explain import explain
    from engine.models.analyze import analyze

    machine = machine_for(arguments.gpu)
    session = answered_session(arguments)
    result = build_matrix(analyze(arguments.model), machine, session.answers())
    if arguments.json:
        output.emit_json(to_json(result))
        return int(ExitCode.DONE)
    if arguments.explain:
        try:
            row = result.row(arguments.explain)
        except KeyError:
            raise EngineError(
                "matrix.approach",
                f"There is no approach '{arguments.explain}'.",
                next_step="Use one of: " + ", ".join(r.id for r in result.rows),
            ) from None
        for column in ("vram", "ram", "hours", "cost", "disk"):
            output.say(f"{row.title}: {column}")
            for line in explain(row, column):
                output.say(
                    f"  {line.label:<22} {line.value:>12}  {line.formula}"
                    + (f"  [{line.source}]" if line.source else "")
                )
        return int(ExitCode.DONE)
    output.say(f"{result.model} on {result.machine}" + ("  SIM" if result.simulated else ""))
    output.table(
        ["", "APPROACH", "FITS?", "MEMORY", "TIME", "COST", "PARAMETERS"],
        [
            [
                "*" if row.id == result.recommended else "",
                row.title,
                str(row.verdict),
                format_bytes(row.vram.likely or row.ram.likely),
                format_range(format_hours(row.hours.low), format_hours(row.hours.high)),
                format_range(format_usd(row.cost_usd.low), format_usd(row.cost_usd.high)),
                format_count(row.base_parameters)
                if row.base_parameters == row.final_parameters
                else f"{format_count(row.base_parameters)} -> {format_count(row.final_parameters)}",
            ]
            for row in result.rows
        ],
        right=(3, 4, 5),
    )
    output.say()
    output.say(f"* {result.recommendation}")
    for warning in result.warnings:
        output.say(f"! {warning}")
    return int(ExitCode.DONE)


def plan(arguments: argparse.Namespace) -> int:
    """Write the spec that the answers lead to."""
    from engine.advise.compare import build_matrix
    from engine.advise.plan import build_spec
    from engine.jobs.spec_toml import dump_spec
    from engine.models.analyze import analyze

    machine = machine_for(arguments.gpu)
    session = answered_session(arguments)
    architecture = analyze(arguments.model)
    approach = arguments.approach or build_matrix(architecture, machine, session.answers()).recommended
    spec = build_spec(architecture, machine, session.answers(), approach=approach)
    if arguments.json:
        output.emit_json(spec)
    elif arguments.write == "-":
        sys.stdout.write(dump_spec(spec))
    else:
        target = Path(arguments.write)
        write_new(target, dump_spec(spec))
        output.say(f"Wrote {target}. Run it: scaler-wizard run {target}")
    return int(ExitCode.DONE)


def write_new(target: Path, text: str) -> None:
    """Write a file that must not exist yet. Raises EngineError instead of overwriting what the user has."""
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise EngineError(
            "file.exists",
            f"{target} exists already and is left as it is.",
            next_step="Choose another name, or remove that file first.",
        ) from None
    except OSError as error:
        raise EngineError(
            "file.unwritable",
            f"Cannot write {target}.",
            cause=error.strerror or str(error),
            next_step="Choose a folder you can write to.",
        ) from error


def data_check(arguments: argparse.Namespace) -> int:
    """What training would see of a file."""
    from engine.data.report import check
    from engine.jobs.spec import DataSection, TrainOn
    from engine.models.analyze import analyze
    from engine.models.resolve import resolve_model

    model_dir = resolve_model(arguments.model).path
    if model_dir is None:
        raise EngineError(
            "data.model",
            f"'{arguments.model}' is a known shape, not a model with a tokenizer here.",
            next_step="Name a model folder, a hub id, or demo.",
        )
    length = arguments.max_length or min(analyze(arguments.model).context_length, 4096)
    section = DataSection(
        train=arguments.file, heldout=arguments.heldout, max_length=length, train_on=TrainOn(arguments.train_on)
    )
    report = check(arguments.file, model_dir, section)
    document = report.as_json()
    if arguments.json:
        output.emit_json(document)
    else:
        from scaler_tui.data_text import plain_text

        output.say(plain_text(document))
    return int(ExitCode.DONE)


__all__ = ["answered_session", "data_check", "doctor", "inspect", "machine_for", "matrix", "plan", "write_new"]
