"""Computed layers: the streamed decomposition, LESA against SOLAR on a trained model, aligned averages."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    StableLmConfig,
)

from engine.errors import EngineError
from engine.expansion.axes import Axis, Dim, Dims, Fused, Role, Side
from engine.expansion.growth import LayerKind
from engine.expansion.layout import Layout, Rule
from engine.expansion.layouts import layout_for
from engine.expansion.operators import OPERATORS, LayerRequest
from engine.expansion.plan import ExpansionPlan
from engine.expansion.plan_io import encode_plan
from engine.learned.deus import Neighbours, aligned, find_orders
from engine.learned.kinds import Kind, kinds, made_layers
from engine.learned.lesa import CHUNK_BYTES, SAMPLE_BYTES
from engine.learned.make import make
from engine.learned.places import places, reordered
from engine.learned.predictor import train
from engine.learned.spectrum import decompose
from engine.learned.tensors import TensorFile, read_tensor
from engine.learned.transport import matching
from engine.models.headers import read_headers
from engine.resources import demo_model_dir
from engine.surgery.expand import ExpandRequest, expand

DEMO_TEXT = Path(__file__).resolve().parents[2] / "assets" / "demo" / "finetune" / "base_text.jsonl"


def layout_of(folder: Path) -> Layout:
    return layout_for(json.loads((folder / "config.json").read_text()), folder.name)


def plan_for(folder: Path, operator: str, layers: int, placement: str = "") -> ExpansionPlan:
    layout = layout_of(folder)
    before = layout.dims
    make_list = OPERATORS[operator].layers
    assert make_list is not None
    return ExpansionPlan(
        family=layout.family,
        before=before,
        after=replace(before, layers=layers),
        operators={"layers": operator},
        layers=make_list(LayerRequest(before.layers, layers, layout.traits, 17, placement)),
    )


def expanded(folder: Path, out: Path, operator: str, layers: int, placement: str = "") -> Path:
    expand(ExpandRequest(folder, out, plan_for(folder, operator, layers, placement), proof=False), lambda _: None)
    return out


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def jittered(config: PretrainedConfig, folder: Path) -> Path:
    """A random model whose gains and biases are not neutral."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
    return jittered(config, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jittered(Qwen3Config(**SIZES, max_window_layers=4), tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def demo_ids() -> list[Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir())
    rows = [json.loads(line)["messages"] for line in DEMO_TEXT.read_text().splitlines()[:40]]
    return [
        tokenizer.apply_chat_template(row, tokenize=True, return_tensors="pt", return_dict=False)[:, :256]
        for row in rows
    ]


def loss_on(folder: Path, texts: Sequence[Tensor]) -> float:
    """Mean cross-entropy per token, nats."""
    model, total, count = loaded(folder), 0.0, 0
    with torch.no_grad():
        for ids in texts:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return total / count


def kinds_of(folder: Path, operator: str = "lesa", layers: int = 6) -> tuple[Kind, ...]:
    layout = layout_of(folder)
    return kinds(read_headers(folder), layout, made_layers(plan_for(folder, operator, layers)))


def kind_named(folder: Path, part: str) -> Kind:
    return next(kind for kind in kinds_of(folder) if part in kind.rule.pattern)


# ── the decomposition ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "part", ["q_proj.weight", "k_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight"]
)
def test_the_streamed_gram_route_is_the_svd_of_all_layers_side_by_side(llama: Path, part: str) -> None:
    kind = kind_named(llama, part)
    spectrum = decompose(kind)
    matrices = [spectrum.oriented(read_tensor(kind.layers[layer])).double() for layer in sorted(kind.layers)]
    whole = torch.cat(matrices, dim=1)
    basis, values, right = torch.linalg.svd(whole, full_matrices=False)
    torch.testing.assert_close(spectrum.values, values, rtol=1e-7, atol=1e-9)
    signs = (basis * spectrum.basis).sum(0)
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=1e-6, atol=1e-6)
    for layer, part_of_right in enumerate(right.split(spectrum.columns, dim=1)):
        ours = spectrum.coefficients(matrices[layer], slice(None)) / spectrum.unit
        torch.testing.assert_close(ours.double() * signs, part_of_right.T, rtol=1e-4, atol=1e-5)


def test_coefficients_give_their_matrix_back(llama: Path) -> None:
    kind = kind_named(llama, "down_proj.weight")
    spectrum = decompose(kind)
    matrix = spectrum.oriented(read_tensor(kind.layers[2]))
    back = spectrum.matrix_rows(spectrum.coefficients(matrix, slice(None))).T
    torch.testing.assert_close(back.float(), matrix, rtol=1e-4, atol=1e-5)


def test_directions_in_which_no_layer_has_anything_are_left_out(tmp_path: Path) -> None:
    low = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    save_file(
        {
            f"layer{index}": low @ torch.randn(3, 20, generator=torch.Generator().manual_seed(index))
            for index in range(3)
        },
        tmp_path / "model.safetensors",
    )
    headers = read_headers(tmp_path).tensors
    kind = Kind(kind_rule((Axis(Dim.HIDDEN), Axis(Dim.HIDDEN, Side.IN))), None, dict(enumerate(headers)))
    spectrum = decompose(kind)
    assert spectrum.rank == 3
    matrix = spectrum.oriented(read_tensor(headers[0]))
    torch.testing.assert_close(
        spectrum.matrix_rows(spectrum.coefficients(matrix, slice(None))).T.float(), matrix, rtol=1e-4, atol=1e-4
    )


def kind_rule(axes: tuple[Axis | Fused, ...]) -> Rule:
    return Rule("layer{i}", Role.INNER, axes)


# ── LESA ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_predictor_learns_a_rule_that_holds_between_layers() -> None:
    draw = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 400, 6, generator=draw)
    straight = torch.stack([first + (second - first) * layer / 4 for layer in range(5)])  # (L, n, r)
    _, learned = train(lambda _: straight, 6, 1, 17)
    noise = torch.randn(5, 400, 6, generator=draw)
    _, nothing = train(lambda _: noise, 6, 1, 17)
    assert learned < 0.1 < 0.9 < nothing


def test_a_share_of_the_way_lies_between_neighbour_and_prediction() -> None:
    sample = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(1))
    predictor, _ = train(lambda _: sample, 4, 1, 17)
    before, after = sample[0], sample[2]
    middle = predictor.at(before, after, 0.5)
    torch.testing.assert_close(predictor.at(before, after, 0.0), before)
    torch.testing.assert_close(predictor.at(before, after, 1.0), after)
    torch.testing.assert_close(predictor.at(before, after, 0.25), (before + middle) / 2)


def test_learned_layers_have_their_names_types_and_shapes(llama: Path, tmp_path: Path) -> None:
    plan = plan_for(llama, "lesa", 6)
    out = tmp_path / "made.safetensors"
    layout = layout_of(llama)
    assert make(read_headers(llama), layout, plan, out) == 2
    made, source = load_file(out), load_file(llama / "model.safetensors")
    expected = {}
    for number, layer in enumerate(plan.layers):
        if layer.kind is LayerKind.MADE:
            prefix = f"model.layers.{layer.base}."
            expected |= {f"made.{number}.{name}": value for name, value in source.items() if name.startswith(prefix)}
    assert made.keys() == expected.keys()
    assert all(made[name].shape == value.shape and made[name].dtype == value.dtype for name, value in expected.items())


def test_norms_and_biases_are_the_neighbours_mean(llama: Path, tmp_path: Path) -> None:
    plan = plan_for(llama, "lesa", 5)
    number, layer = next((n, one) for n, one in enumerate(plan.layers) if one.kind is LayerKind.MADE)
    out = tmp_path / "made.safetensors"
    make(read_headers(llama), layout_of(llama), plan, out)
    source, made = load_file(llama / "model.safetensors"), load_file(out)
    for part in ("input_layernorm.weight", "self_attn.q_proj.bias", "mlp.down_proj.bias"):
        first, second = (source[f"model.layers.{index}.{part}"] for index in (layer.base, layer.other))
        torch.testing.assert_close(made[f"made.{number}.model.layers.{layer.base}.{part}"], (first + second) / 2)


def test_equal_seeds_give_equal_bytes_and_another_seed_gives_others(llama: Path, tmp_path: Path) -> None:
    layout = layout_of(llama)
    plan = plan_for(llama, "lesa", 6)
    for name, one in (("a", plan), ("b", plan), ("c", replace(plan, seed=18))):
        make(read_headers(llama), layout, one, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_little_memory_changes_the_rows_learned_from_but_not_the_result_of_slicing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, plan = layout_of(llama), plan_for(llama, "lesa", 6)
    headers = read_headers(llama)
    make(headers, layout, plan, tmp_path / "whole")
    monkeypatch.setattr("engine.learned.lesa.CHUNK_BYTES", 2 * 48 * 4 * 7)
    make(headers, layout, plan, tmp_path / "sliced")
    whole, sliced = load_file(tmp_path / "whole"), load_file(tmp_path / "sliced")
    for name in whole:
        torch.testing.assert_close(whole[name], sliced[name], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("engine.learned.lesa.SAMPLE_BYTES", 4 * 48 * 4 * 10)
    make(headers, layout, plan, tmp_path / "fewer")
    fewer = load_file(tmp_path / "fewer")
    assert any(not torch.equal(whole[name], fewer[name]) for name in whole)
    assert CHUNK_BYTES < SAMPLE_BYTES <= 512 * 1024**2, "what the two constants bound stays small"


@pytest.mark.slow
def test_lesas_first_loss_lies_below_solars_at_the_same_depth(demo_ids: list[Tensor], tmp_path: Path) -> None:
    source = demo_model_dir()
    before = loss_on(source, demo_ids)
    losses = {
        operator: loss_on(expanded(source, tmp_path / operator, operator, 12), demo_ids)
        for operator in ("lesa", "solar", "blend", "lesa-silent")
    }
    assert losses["lesa"] < losses["blend"] < losses["solar"], losses
    assert losses["lesa-silent"] == pytest.approx(before, abs=1e-6)


# ── aligned averages ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_transport_finds_a_permutation_again_through_noise() -> None:
    draw = torch.Generator().manual_seed(9)
    first = torch.randn(200, 30, generator=draw)
    order = torch.randperm(200, generator=draw)
    second = torch.empty_like(first)
    second[order] = first + 0.2 * torch.randn(200, 30, generator=draw)
    assert torch.equal(matching([(first[:, :10], second[:, :10]), (first[:, 10:], second[:, 10:])], 200), order)


@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_any_two_sets_give_a_permutation_however_they_are_cut(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.learned.transport.ROWS_AT_ONCE", rows_at_once)
    draw = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 65, 5, generator=draw)
    assert matching([(first, second)], 65).sort().values.tolist() == list(range(65))
    assert matching([(torch.zeros(4, 3), torch.zeros(4, 3))], 4).sort().values.tolist() == [0, 1, 2, 3]


def test_half_precision_costs_find_the_same_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(4)
    first = torch.randn(300, 64, generator=draw) * 0.02
    second = first[torch.randperm(300, generator=draw)]
    full = matching([(first, second)], 300)
    monkeypatch.setattr("engine.learned.transport.HALF_ABOVE", 10)
    assert torch.equal(matching([(first, second)], 300), full)


FUSED_DIMS = Dims(layers=1, hidden=4, ffn=3, heads=4, kv_heads=2, head_dim=2, vocab=8)
QKV = (Axis(Dim.QUERY), Axis(Dim.KEY_VALUE), Axis(Dim.KEY_VALUE))


def test_fused_axes_say_where_every_unit_is() -> None:
    concat = places(Fused(QKV), FUSED_DIMS, 16)
    assert [(dim, table.tolist()) for dim, table in concat] == [
        (Dim.QUERY, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (Dim.KEY_VALUE, [[8, 9], [10, 11]]),
        (Dim.KEY_VALUE, [[12, 13], [14, 15]]),
    ]
    grouped = dict(enumerate(places(Fused(QKV, "grouped"), FUSED_DIMS, 16)))
    assert grouped[0][1].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert grouped[1][1].tolist() == [[4, 5], [12, 13]]
    assert grouped[2][1].tolist() == [[6, 7], [14, 15]]
    gate_up = places(Fused((Axis(Dim.FFN), Axis(Dim.FFN)), "interleaved"), FUSED_DIMS, 6)
    assert [table.flatten().tolist() for _, table in gate_up] == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("order", ["concat", "grouped"])
def test_a_fused_tensor_is_reordered_in_all_its_parts(order: str) -> None:
    stored = torch.arange(16.0)[:, None].expand(16, 4)
    orders = {Dim.KEY_VALUE: torch.tensor([1, 0]), Dim.QUERY: torch.tensor([3, 2, 0, 1])}
    moved = reordered(stored, (Fused(QKV, order), Axis(Dim.HIDDEN, Side.IN)), FUSED_DIMS, orders)[:, 0].tolist()
    expected = {
        "concat": [6, 7, 4, 5, 0, 1, 2, 3, 10, 11, 8, 9, 14, 15, 12, 13],
        "grouped": [10, 11, 8, 9, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7],
    }
    assert moved == expected[order]


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen3": lambda: Qwen3Config(**SIZES, max_window_layers=4),
    "phi3, fused": lambda: Phi3Config(**SIZES, pad_token_id=0),
    "neox, fused by head": lambda: GPTNeoXConfig(**SIZES),
    "falcon, fused by group": lambda: FalconConfig(
        hidden_size=48,
        ffn_hidden_size=80,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_kv_heads=2,
        vocab_size=96,
        new_decoder_architecture=True,
    ),
    "stablelm, a norm per head": lambda: StableLmConfig(**SIZES, qk_layernorm=True),
    "gemma2, post-norms": lambda: Gemma2Config(**SIZES),
    "olmo2, one norm over all heads": lambda: Olmo2Config(**SIZES),
    "cohere, interleaved rotary": lambda: CohereConfig(**SIZES, use_qk_norm=True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reordered_layer_computes_what_it_computed(family: str, tmp_path: Path) -> None:
    folder = jittered(FAMILIES[family](), tmp_path)
    found, dims = kinds_of(folder, "deus"), plan_for(folder, "deus", 6).before
    orders = find_orders(Neighbours(found, dims, 1, 2))
    assert all(order.tolist() != sorted(order.tolist()) for dim, order in orders.items() if dim is not Dim.KEY_VALUE)
    model = loaded(folder)
    moved = copy.deepcopy(model)
    names = dict(moved.named_parameters())
    with torch.no_grad():
        for kind in found:
            names[kind.layers[2].name].copy_(aligned(kind, 2, orders, dims, found))
    assert any(not torch.equal(value, names[name]) for name, value in model.named_parameters())
    ids = torch.arange(40)[None] % 96
    with torch.no_grad():
        torch.testing.assert_close(moved(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_shuffled_copy_of_a_layer_is_averaged_to_that_layer(llama: Path, tmp_path: Path) -> None:
    """Layer 2 becomes layer 1 with its neurons and heads shuffled: aligned, their mean is layer 1 itself."""
    found, dims = kinds_of(llama), plan_for(llama, "deus", 6).before
    groups = torch.tensor([1, 0])
    heads = torch.tensor([4, 3, 5, 2, 0, 1])
    neurons = torch.randperm(dims.ffn, generator=torch.Generator().manual_seed(8))
    orders = {Dim.FFN: neurons, Dim.QUERY: heads, Dim.KEY_VALUE: groups}
    tensors = load_file(llama / "model.safetensors")
    for kind in found:
        tensors[kind.layers[2].name] = aligned(kind, 1, orders, dims, found).contiguous()
    folder = tmp_path / "shuffled"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((llama / "config.json").read_text())
    plan = plan_for(folder, "deus", 5)
    plan = replace(plan, layers=tuple(replace(one, base=1, other=2) if one.new else one for one in plan.layers))
    number = next(n for n, one in enumerate(plan.layers) if one.new)
    make(
        read_headers(folder), layout_for(json.loads((folder / "config.json").read_text()), "x"), plan, tmp_path / "made"
    )
    for name, value in load_file(tmp_path / "made").items():
        torch.testing.assert_close(value, tensors[name.removeprefix(f"made.{number}.")], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["identity", "fresh", "blend-silent", "deus", "lesa-silent"])
@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_closed_layers_keep_the_function_to_the_last_bit(
    operator: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(family)
    larger = loaded(expanded(folder, tmp_path / "out", operator, 7))
    ids = torch.arange(40)[None] % 96
    with torch.no_grad():
        assert torch.equal(larger(ids).logits, loaded(folder)(ids).logits)
    assert larger.config.num_hidden_layers == 7


# ── the process, files, refusals ──────────────────────────────────────────────────────────────────────────────────────


def run_process(source: Path, plan: ExpansionPlan, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "plan.json").write_bytes(encode_plan(plan))
    command = [sys.executable, "-m", "engine.learned", "--source", str(source)]
    command += ["--plan", str(folder / "plan.json"), "--out", str(folder / "made.safetensors")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_process_reports_in_json_lines_and_ends_with_a_file(llama: Path, tmp_path: Path) -> None:
    result = run_process(llama, plan_for(llama, "deus", 6), tmp_path)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0
    assert {tuple(line) for line in lines} == {("phase", "done", "total", "words")}
    assert lines[-1] == {"phase": "done", "done": 2, "total": 2, "words": "2 layers"}
    assert len(load_file(tmp_path / "made.safetensors")) == 2 * len(kinds_of(llama))


def test_weights_that_are_no_numbers_end_with_the_reason_and_no_file(llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "damaged"
    source.mkdir()
    tensors = load_file(llama / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text((llama / "config.json").read_text())
    result = run_process(source, plan_for(source, "lesa", 6), tmp_path)
    assert json.loads(result.stdout.splitlines()[-1])["error"]["code"] == "weights.nan"
    assert result.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "plan.json"]


def test_a_file_has_its_name_only_when_every_tensor_is_in_it(tmp_path: Path) -> None:
    entries = [("a", "F32", (2, 3)), ("b", "BF16", (4,))]
    with pytest.raises(RuntimeError, match="1 tensors were never written"), TensorFile(tmp_path / "f", entries) as file:
        file.write("a", torch.ones(2, 3))
    assert list(tmp_path.iterdir()) == []
    with TensorFile(tmp_path / "f", entries) as file:
        file.write("b", torch.arange(4.0))
        file.write("a", torch.arange(6.0).reshape(3, 2).T)
    stored = load_file(tmp_path / "f")
    assert stored["b"].dtype == torch.bfloat16
    assert torch.equal(stored["a"], torch.arange(6.0).reshape(3, 2).T)


def test_layers_of_a_mixture_are_refused_by_name(tmp_path: Path) -> None:
    sizes = SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1}
    folder = jittered(MixtralConfig(**sizes), tmp_path)  # type: ignore[arg-type]
    layout = layout_of(folder)
    plan = replace(plan_for(folder, "identity", 5), operators={"layers": "lesa"})
    with pytest.raises(EngineError) as refused:
        make(read_headers(folder), layout, plan, tmp_path / "made")
    assert refused.value.code == "learned.experts"
