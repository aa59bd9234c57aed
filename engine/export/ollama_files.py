"""The folder that Ollama is given: GGUF files with a Modelfile each, and the command that takes them.

Owns these. Must not know how files or templates are made.
"""

from __future__ import annotations

from pathlib import Path

from engine.context.gguf_support import exact_context, graph_of, rope_of
from engine.data.tokenizer import ChatTokenizer
from engine.export.gguf_files import GgufWork
from engine.export.licence import Licence
from engine.export.ollama import Modelfile, go_template, parameters_of
from engine.export.order import ExportOrder, adapter_name, gguf_name
from engine.export.stops import stop_ids
from engine.jobs.export_report import ExportedFile
from engine.jobs.layout import write_atomic
from engine.models.config import CONFIG_NAME, read_json_object, text_part
from engine.models.shape import read_shape

NAME = "Modelfile"


def write_modelfiles(work: GgufWork, licence: Licence) -> tuple[ExportedFile, ...]:
    """One per size, in `staging.result`; "Modelfile" where there is one size only. Raises EngineError `model.*`."""
    found = []
    tokenizer = ChatTokenizer.load(work.model)
    template, why = go_template(tokenizer)
    if template is None:
        work.flags.append(
            f"The Modelfile has no TEMPLATE: {why}. Ollama then uses what it recognises in the GGUF file."
        )
    elif not template.takes_system:
        work.flags.append("System messages cannot be carried over from the model's template: SYSTEM does nothing.")
    stops = tuple(tokenizer.token_text(number) for number in stop_ids(work.model, tokenizer))
    window = window_of(work.model, long_window=_is_about_length(work))
    for kind in work.order.types:
        name = modelfile_name(work.order, kind)
        content = Modelfile(
            model=gguf_name(work.order, kind),
            adapter=adapter_name(work.order) if work.order.adapter else "",
            template=template,
            stops=tuple(stop for stop in stops if stop),
            parameters=parameters_of(work.model, window, long_window=_is_about_length(work)),
            licence=licence.name or (licence.identifier if licence.is_known else ""),
            notes=_notes(work, kind, template is not None),
        ).text()
        write_atomic(work.staging.result / name, content.encode())
        path = work.order.out_path / name
        proof = "" if template is not None else f"There is no TEMPLATE: {why}."
        found.append(
            ExportedFile(path=str(path), size_bytes=len(content.encode()), kind="modelfile", not_verified=proof)
        )
    return tuple(found)


def _notes(work: GgufWork, kind: str, proven: bool) -> tuple[str, ...]:
    compared = next((file.agreement for file in work.files if file.kind == kind and file.agreement), None)
    told = [f"{work.order.name}, {kind}; made by scaler-wizard."]
    if proven:
        told.append("The template gives the same text as the model's own; it was run on both.")
    if compared is not None and compared.stops:
        told.append(
            f"Stop tokens ended {compared.ended} of {compared.prompts} answers in {compared.runtime}, those that they "
            "ended in transformers."
        )
    return tuple(told)


def window_of(folder: Path, *, long_window: bool) -> int:
    """Tokens for num_ctx: those within which llama.cpp computes what the model does. With LongRoPE it takes one set of
    factors for the whole window, the long one beyond the original length, which the model takes for long texts only:
    that length then, unless the job was about a longer window. Raises EngineError `model.*`, `export.*`."""
    tree = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
    config, graph = text_part(tree)[0], graph_of(tree)
    window, rope = exact_context(graph, read_shape(config, CONFIG_NAME)), rope_of(graph, config)
    switches = rope.kind == "longrope" and len({factors for _, factors in rope.tensors}) > 1
    return min(window, rope.original) if switches and rope.original and not long_window else window


def _is_about_length(work: GgufWork) -> bool:
    return work.spec is not None and bool(work.spec.context.extends)


def create_commands(order: ExportOrder) -> tuple[tuple[str, ...], ...]:
    """What makes Ollama take the Modelfiles: one command for each."""
    several, name = len(order.types) > 1, order.name.lower()  # as Ollama shows it
    return tuple(
        (
            *("ollama", "create", f"{name}:{kind}" if several else name),
            *("-f", str(order.out_path / modelfile_name(order, kind))),
        )
        for kind in order.types
    )


def modelfile_name(order: ExportOrder, kind: str) -> str:
    """ "Modelfile" where there is one size only."""
    return NAME if len(order.types) == 1 else f"{NAME}.{kind.upper()}"
