"""What a GGUF file cannot say of a model, told from its config alone: before anything is trained, or written.

Owns the findings: lost (the export is refused) or partial (it is flagged). Must not know files, weights or numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.context.gguf_graphs import FULL, GRAPHS, LARGEST_LAYER_COUNT, SLIDING, Graph, is_default_pattern
from engine.context.gguf_graphs import sliding_layers as layers_that_slide
from engine.context.gguf_rope import GgufRope, rope_for_gguf
from engine.errors import EngineError
from engine.models.config import text_part
from engine.models.shape import Shape, read_shape

_ELSEWHERE = "Export for transformers or vLLM instead: scaler-wizard export hf."
_K_BLOCK, _Q8_BLOCK = 256, 32
_K_QUANTS = frozenset({"q6_k", "q5_k_m", "q4_k_m"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of a model that llama.cpp computes differently, or not at all."""

    code: str
    """ "export.family", ..."""
    lost: bool
    """True: the file would be wrong, and none is written. False: right under the condition that `what` states."""
    what: str
    cause: str = ""
    next_step: str = ""

    def as_error(self) -> EngineError:
        """The refusal; the caller raises it."""
        return EngineError(self.code, self.what, cause=self.cause, next_step=self.next_step)


def what_is_lost(config: Mapping[str, Any], stored: str = "") -> tuple[Finding, ...]:
    """Everything that a GGUF file of the model of `config` could not say, the fatal first; () where it is whole.

    `stored` is the size asked for (f16, q8_0, q4_k_m, ...): rows of some widths are then kept in a larger type.
    """
    part, key = text_part(dict(config))
    graph = GRAPHS.get(str(part.get("model_type")))
    if graph is None:
        return (_unknown(str(part.get("model_type"))),)
    try:
        shape = read_shape(part, "config.json")
        found = [*_of_sizes(graph, shape, part), *_of_attention(graph, shape, part), *_of_rope(graph, shape, part)]
    except EngineError as error:
        return (_as_finding(error),)
    if key:
        found.append(
            Finding("export.text_only", False, "Only the language model is exported; its image part is left out.")
        )
    found += _of_widths(shape, stored)
    return tuple(sorted(found, key=lambda finding: not finding.lost))


def graph_of(config: Mapping[str, Any]) -> Graph:
    """The graph of the model's family. Raises EngineError `export.family`."""
    kind = str(text_part(dict(config))[0].get("model_type"))
    graph = GRAPHS.get(kind)
    if graph is None:
        raise _unknown(kind).as_error()
    return graph


def rope_of(graph: Graph, config: Mapping[str, Any]) -> GgufRope:
    """The rotary part of the file. Raises EngineError as `rope_for_gguf`."""
    return rope_for_gguf(config, graph.divisors, by_layer=graph.own_local_base)


def exact_context(graph: Graph, shape: Shape) -> int:
    """Tokens within which llama.cpp computes what the model computes: its window where the graph has none."""
    window = shape.sliding_window
    return min(window, shape.context_length) if window and not graph.pattern else shape.context_length


def _of_sizes(graph: Graph, shape: Shape, config: Mapping[str, Any]) -> Iterator[Finding]:
    kind = config.get("model_type")
    if shape.layers > LARGEST_LAYER_COUNT:
        yield _lost("layers", f"llama.cpp has at most {LARGEST_LAYER_COUNT} layers, this model {shape.layers}.")
    activation = config.get("hidden_activation") or config.get("hidden_act") or graph.activation
    if activation not in (graph.activation, "swish" if graph.activation == "silu" else ""):
        yield _lost("activation", f"llama.cpp's graph of {kind} has {graph.activation}, this model {activation}.")
    if graph.fused and shape.query_width != shape.hidden:
        yield _lost(
            "head_width",
            f"llama.cpp's graph of {kind} takes heads that are together as wide as the model: {shape.hidden}, "
            f"not {shape.query_width}.",
        )
    if graph.tied_only and not shape.tied:
        yield _lost("untied", f"llama.cpp's graph of {kind} has no output matrix apart from the embedding.")
    if config.get("attention_bias") and "attn_output" not in graph.biases and kind != "qwen2":
        yield _lost("bias", f"llama.cpp's graph of {kind} has no bias on the attention's output.")
    if config.get("quantization_config"):
        yield Finding(
            "export.packed",
            True,
            "The weights are packed; GGUF files are made of 16 and 32-bit ones.",
            next_step="Take the model from before it was packed.",
        )


def _of_attention(graph: Graph, shape: Shape, config: Mapping[str, Any]) -> Iterator[Finding]:
    kind, listed = config.get("model_type"), config.get("layer_types") or ()
    others = sorted(set(map(str, listed)) - {SLIDING, FULL})
    if others or (listed and len(listed) != shape.layers):
        yield _lost(
            "layer_types",
            f"llama.cpp cannot follow this model's layer types: {', '.join(others) or len(listed)} "
            f"for {shape.layers} layers.",
        )
        return
    if config.get("use_bidirectional_attention"):
        yield _lost("bidirectional", "This model's tokens see later ones, which llama.cpp's graph does not allow.")
    if config.get("attn_logit_softcapping") and not graph.soft_caps:
        yield _lost("soft_cap", f"llama.cpp's graph of {kind} has no soft cap on the attention's logits.")
    exact = exact_context(graph, shape)
    if exact < shape.context_length:
        yield Finding(
            "export.sliding_window",
            False,
            f"Right up to {exact:,} tokens, which the file states as its context; beyond, llama.cpp attends to "
            "everything where the model attends within its window.",
            f"llama.cpp's graph of {kind} has no sliding window.",
            f"Keep conversations within {exact:,} tokens, or run the model with transformers or vLLM.",
        )
    sliding = layers_that_slide(graph, shape, config)
    if sliding and not is_default_pattern(graph, sliding):
        yield Finding(
            "export.layer_pattern",
            False,
            f"Sliding and full layers do not alternate as in the original {kind}; the file lists them.",
            f"Versions of llama.cpp from before 2026, and Ollama's own engine, take every {graph.pattern}th layer for "
            "a full one whatever the file says.",
            "Run it with llama-cpp-python 0.3.36 or newer.",
        )


def _of_rope(graph: Graph, shape: Shape, config: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        rope = rope_of(graph, config)
    except EngineError as error:
        yield _as_finding(error)
        return
    if graph.whole_heads and rope.dim != shape.head_dim:
        yield _lost("rope_partial", f"llama.cpp's graph of {config.get('model_type')} rotates whole heads only.")
    tensors = dict(rope.tensors)
    if len(tensors) == 2 and len(set(tensors.values())) == 2:
        yield Finding(
            "export.longrope",
            False,
            f"llama.cpp picks one set of LongRoPE's factors when it starts: the long one for contexts above "
            f"{rope.original:,} tokens, whatever the text's length.",
            "transformers picks by the text's length.",
            f"Start it with a context of at most {rope.original:,} tokens for short texts.",
        )


def _of_widths(shape: Shape, stored: str) -> Iterator[Finding]:
    block = _K_BLOCK if stored in _K_QUANTS else _Q8_BLOCK if stored == "q8_0" else 1
    widths = {"attention and gate": shape.hidden, "attention output": shape.query_width, "down": shape.intermediate}
    odd = [f"{name} ({width})" for name, width in widths.items() if width % block]
    if odd:
        yield Finding(
            "export.row_width",
            False,
            f"Rows that are no multiple of {block} long are kept in a larger type: {', '.join(odd)}.",
            f"{stored} packs {block} neighbours into a block.",
            "Take q8_0 or f16 if the file is larger than hoped." if block == _K_BLOCK else "",
        )


def _unknown(kind: str) -> Finding:
    return Finding(
        "export.family",
        True,
        f"Models of type '{kind}' are not exported here; known are {', '.join(GRAPHS)}.",
        "Tensors, sizes and tokenizer of a family must be known one by one.",
        "Use llama.cpp's own convert_hf_to_gguf.py, or export for transformers: scaler-wizard export hf.",
    )


def _lost(code: str, what: str) -> Finding:
    return Finding(f"export.{code}", True, what, next_step=_ELSEWHERE)


def _as_finding(error: EngineError) -> Finding:
    return Finding(error.code, True, error.what, error.cause, error.next_step or _ELSEWHERE)
