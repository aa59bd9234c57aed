"""What makes long sequences trainable changes no number: losses in pieces, waiting activations, packed documents; and
what changes positions changes nothing else: skips, and the embedding of before."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.context.planner import plan_context
from engine.data.load import PreparedData, prepare
from engine.errors import EngineError
from engine.evaluation.head import SelectiveHead, Wanted, summed_loss
from engine.evaluation.model import LoadedModel
from engine.evaluation.rows import score_rows
from engine.extension.extend import Decision
from engine.extension.folder import write_extended
from engine.jobs.spec import DataSection
from engine.models.config import read_json_object
from engine.models.resolve import resolve_model
from engine.train.also_trained import names_of
from engine.train.environment import Device, seed_everything
from engine.train.lessons import plan_lessons
from engine.train.model import AdapterExtras, BaseRequest, add_adapter, load_base, ready
from engine.train.original_positions import original_rotation
from engine.train.skipped_positions import check_attention_reaches_across, skipped_positions
from engine.train.step_batches import StepDataset
from engine.train.trainer import TokenTrainer, training_arguments
from engine.train.window import Window
from tests.support.live_bytes import watch
from tests.train.conftest import SpecMaker

pytestmark = pytest.mark.slow
DEVICE = Device("cpu", "test", torch.float32)
WINDOW, TARGET = 128, 512


@pytest.fixture(scope="module")
def long_data(tiny_model: Path, long_text: Path) -> PreparedData:
    section = DataSection(train=str(long_text), heldout="", heldout_fraction=0.0, base_text="", max_length=TARGET)
    return prepare(section, tiny_model)


@pytest.fixture(scope="module")
def window(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Window:
    """The tiny model under YaRN, four times its window."""
    config = read_json_object(tiny_model / "config.json", code="x", what="config")
    plan = plan_context(config, TARGET, "yarn")
    folder = tmp_path_factory.mktemp("extended") / "model"
    write_extended(tiny_model, folder, plan, links="symbolic")
    return Window(resolve_model(str(folder)), tiny_model, WINDOW, TARGET, Decision(plan=plan))


def load(folder: Path, data: PreparedData) -> LoadedModel:
    base = load_base(BaseRequest(folder, "none", True, torch.float32, "cpu"))
    return ready(base, base, data.tokenizer, DEVICE)


def some_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 384, shape, generator=torch.Generator().manual_seed(seed))


# ── the loss in pieces ────────────────────────────────────────────────────────────────────────────────────────────
def family(name: str) -> Any:
    """A small random model of a family that does something to its logits after the head."""
    import transformers

    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    own: dict[str, Any] = {
        "Llama": {},
        "Gemma2": {"final_logit_softcapping": 0.4},
        "Granite": {"logits_scaling": 7.0},
        "Cohere": {"logit_scale": 0.0625},
    }[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**sizes, **own)
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Granite", "Cohere"])
def test_the_loss_in_pieces_is_the_loss_with_its_gradients(name: str) -> None:
    model = family(name)
    head = SelectiveHead(model)
    ids = some_ids(2, 40) % 96
    wanted = Wanted(ids, torch.arange(40).expand(2, 40), torch.arange(3, 75))
    targets = some_ids(72, seed=1) % 96
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for chunk in (0, 16, 71):
        model.zero_grad()
        loss = head.loss_at(model, wanted, targets, chunk)
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (whole, gradients), *in_pieces = found
    assert whole == summed_loss(head.logits_of(model, wanted).detach(), targets)
    for loss, other in in_pieces:
        torch.testing.assert_close(loss, whole, rtol=1e-5, atol=0)
        assert other.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(other[key], gradient, rtol=1e-5, atol=1e-5)


def test_a_family_that_changes_its_logits_in_another_way_is_refused() -> None:
    model = family("Llama")
    model.config.logits_scaling = 7.0  # said, and not done by this class
    head = SelectiveHead(model)
    wanted = Wanted(some_ids(1, 20) % 96, torch.arange(20)[None], torch.arange(20))
    with pytest.raises(EngineError) as refused:
        head.loss_at(model, wanted, some_ids(20) % 96, 4)
    assert refused.value.code == "train.head_not_in_pieces"
    assert "loss_chunk_tokens = 0" in refused.value.next_step


def test_logits_never_exist_all_at_once_in_pieces(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, tokens = 16384, 256
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    head = SelectiveHead(model)
    wanted = Wanted(some_ids(1, tokens), torch.arange(tokens)[None], torch.arange(tokens))

    def step(chunk: int) -> int:
        live = watch(lambda: None, lambda _: head.loss_at(model, wanted, some_ids(tokens), chunk).backward(), tmp_path)
        return live.peak - live.at_start

    all_logits = 4 * vocabulary * tokens
    assert step(0) > 2 * all_logits
    assert step(16) < all_logits / 3


def test_scoring_long_rows_in_pieces_gives_the_same_figures(
    tiny_model: Path, long_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny_model, long_data)
    rows = [row for row in long_data.train if len(row.input_ids) > 400][:2]
    whole = score_rows(loaded, rows)
    monkeypatch.setattr("engine.evaluation.rows.LOGIT_BYTES_PER_BATCH", 4 * 384 * 50)
    in_pieces = score_rows(loaded, rows)
    assert in_pieces.tokens == whole.tokens > 800
    assert in_pieces.loss == pytest.approx(whole.loss, rel=1e-6)


# ── waiting activations ───────────────────────────────────────────────────────────────────────────────────────────
def test_offloading_takes_the_inputs_of_layers_and_changes_no_bit(
    tiny_model: Path, long_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_utils

    moved: list[tuple[int, ...]] = []

    class Recording(torch.autograd.graph.saved_tensors_hooks):
        """What transformers opens around a checkpointed layer, with a list of what it is given."""

        def __init__(self, **_: Any) -> None:
            def pack(tensor: Tensor) -> Tensor:
                moved.append(tuple(tensor.shape))
                return tensor.to("cpu", copy=True)

            super().__init__(pack, lambda tensor: tensor)

    def gradients(*, offload: bool, recorded: bool = False) -> dict[str, Tensor]:
        base = load_base(BaseRequest(tiny_model, "none", True, torch.float32, "cpu"))
        seed_everything(1)
        extras = AdapterExtras(gradient_checkpointing=not recorded, offload=offload)
        model = add_adapter(base, spec_adapter(), extras=extras)
        if recorded:  # a processor has no pinned memory: what a card would move is only written down
            base.activation_checkpointing_enable({"use_reentrant": False}, offload=True)
        model.train()
        wanted = Wanted(some_ids(2, 30), torch.arange(30).expand(2, 30), torch.arange(60))
        SelectiveHead(base).loss_at(model, wanted, some_ids(60), 0).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, asked = gradients(offload=False), gradients(offload=True)
    monkeypatch.setattr(modeling_utils, "save_on_cpu", Recording)
    moving = gradients(offload=True, recorded=True)
    assert plain
    for name, gradient in plain.items():
        assert torch.equal(asked[name], gradient), name
        assert torch.equal(moving[name], gradient), name
    held = [shape for shape in moved if len(shape) > 1]
    assert held == [(2, 30, 64)] * 2, "the input of each of two layers, and nothing else"


def spec_adapter() -> Any:
    from engine.jobs.spec import AdapterSection

    return AdapterSection(rank=4, alpha=8)


# ── packed documents ──────────────────────────────────────────────────────────────────────────────────────────────
def test_another_first_document_leaves_the_logits_of_the_second_alone(
    tiny_model: Path, long_data: PreparedData
) -> None:
    loaded = load(tiny_model, long_data)
    ids = some_ids(1, 60)
    other = ids.clone()
    other[0, :25] = some_ids(25, seed=9)
    positions = torch.cat([torch.arange(25), torch.arange(35)])[None]
    with loaded.inference():
        first = loaded.logits_at(ids, positions, torch.arange(60))
        second = loaded.logits_at(other, positions, torch.arange(60))
    assert torch.equal(first[25:], second[25:])
    assert not torch.equal(first[:25], second[:25])


# ── skipped positions ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("chunks", [2, 3])
def test_skipped_positions_rise_from_zero_and_reach_every_distance(chunks: int) -> None:
    seen: set[int] = set()
    for number in range(1500):
        positions = skipped_positions(32, 256, chunks, random.Random(number))
        assert positions[0] == 0
        assert positions[-1] <= 255
        assert all(later > earlier for earlier, later in pairwise(positions))
        steps = sum(later - earlier > 1 for earlier, later in pairwise(positions))
        assert steps <= chunks - 1
        seen |= {later - earlier for earlier in positions[::4] for later in positions if later > earlier}
    assert max(seen) == 255
    assert len(seen) > 0.97 * 255


def test_a_sequence_that_fills_the_target_skips_nothing() -> None:
    assert skipped_positions(16, 16, 2, random.Random(0)) == tuple(range(16))
    assert skipped_positions(1, 16, 4, random.Random(0)) == (0,)


def test_pieces_of_pose_see_each_other_only_with_a_mask(tiny_model: Path, long_data: PreparedData) -> None:
    """The trap, and that the self-check notices it."""
    loaded = load(tiny_model, long_data)
    check_attention_reaches_across(loaded, TARGET)

    class WithoutMask:
        config = loaded.model.config
        training = False

        def __call__(self, **arguments: Any) -> Any:
            arguments.pop("attention_mask")
            return loaded.model(**arguments)

        def eval(self) -> None:
            loaded.model.eval()

        def train(self, mode: bool) -> None:
            loaded.model.train(mode)

    trapped = LoadedModel(WithoutMask(), loaded.head, loaded.tokenizer, "cpu", torch.float32)
    with pytest.raises(EngineError) as refused:
        check_attention_reaches_across(trapped, TARGET)
    assert refused.value.code == "train.pose_pieces_apart"
    assert "mixed" in refused.value.next_step


def test_pose_trains_short_sequences_at_long_positions_the_same_ones_again(
    make_spec: SpecMaker, long_data: PreparedData, window: Window
) -> None:
    spec = make_spec(
        "lora", data={"max_length": TARGET}, context={"length": TARGET, "method": "yarn", "window": "pose"}
    )
    dataset = StepDataset(plan_lessons(spec, long_data.train, window).lessons, 0)
    again = StepDataset(plan_lessons(spec, long_data.train, window).lessons, 0)
    highest = 0
    for number in range(len(dataset)):
        (batch,), (same,) = dataset[number], again[number]
        assert batch["input_ids"].shape[1] <= WINDOW
        assert batch["attention_mask"].sum() == batch["tokens"]
        assert torch.equal(batch["position_ids"], same["position_ids"])
        highest = max(highest, int(batch["position_ids"].max()))
    assert WINDOW * 2 < highest < TARGET


# ── the embedding of before ───────────────────────────────────────────────────────────────────────────────────────
def test_the_original_positions_are_the_source_models_and_leave_no_trace(
    tiny_model: Path, long_data: PreparedData, window: Window
) -> None:
    assert window.ref.path is not None
    extended, source = load(window.ref.path, long_data), load(tiny_model, long_data)
    ids, positions = some_ids(1, 100), torch.arange(100)[None]
    everywhere = torch.arange(100)
    swap = original_rotation(extended.model, window)
    with extended.inference(), source.inference():
        scaled = extended.logits_at(ids, positions, everywhere)
        expected = source.logits_at(ids, positions, everywhere)
        with swap():
            assert torch.equal(extended.logits_at(ids, positions, everywhere), expected)
        assert torch.equal(extended.logits_at(ids, positions, everywhere), scaled)
    assert not torch.equal(scaled, expected)


def test_a_folder_extended_before_the_job_still_knows_its_original_positions(
    tiny_model: Path, long_data: PreparedData, window: Window
) -> None:
    assert window.ref.path is not None
    extended = load(window.ref.path, long_data)
    before = Window(window.ref, window.ref.path, WINDOW, TARGET)
    with original_rotation(extended.model, before)():
        found = extended.model.model.rotary_emb.inv_freq.clone()
    assert torch.equal(found, load(tiny_model, long_data).model.model.rotary_emb.inv_freq)


# ── steps of several micro-batches ────────────────────────────────────────────────────────────────────────────────
def trained(spec: Any, data: PreparedData, window: Window, folder: Path) -> tuple[dict[str, Tensor], TokenTrainer]:
    """Everything that learned, after the spec's steps."""
    assert window.ref.path is not None
    base = load_base(BaseRequest(window.ref.path, "none", True, torch.float32, "cpu"))
    seed_everything(1)
    extras = AdapterExtras(gradient_checkpointing=spec.training.gradient_checkpointing, norms=True)
    model = add_adapter(base, spec.adapter, extras=extras)
    loaded = ready(model, base, data.tokenizer, DEVICE)
    dataset = StepDataset(plan_lessons(spec, data.train, window).lessons, loaded.pad_id)
    arguments = training_arguments(spec, folder, loaded, planned_steps=len(dataset))
    trainer = TokenTrainer(loaded, dataset, arguments, spec.training, original=original_rotation(base, window))
    trainer.train()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, trainer


def test_a_step_of_so_many_tokens_equals_one_large_batch(
    make_spec: SpecMaker, long_data: PreparedData, window: Window, tmp_path: Path
) -> None:
    def spec(**training: Any) -> Any:
        return make_spec(
            "lora",
            data={"max_length": TARGET},
            context={"length": TARGET, "method": "yarn", "curriculum": [TARGET]},
            adapter={"dropout": 0.0},
            training={"max_steps": 1, "learning_rate": 1e-3, "warmup_ratio": 0.0, **training},
        )

    large, whole = trained(spec(batch_size=6), long_data, window, tmp_path)
    small, trainer = trained(spec(batch_size=2, tokens_per_step=whole.step_tokens), long_data, window, tmp_path)
    assert len(trainer.train_dataset[0]) == 3
    assert trainer.step_tokens == whole.step_tokens
    assert any("lora_B" in name and bool(tensor.abs().sum() > 0) for name, tensor in large.items())
    for name, tensor in large.items():
        torch.testing.assert_close(small[name], tensor, atol=2e-5, rtol=1e-3)


def test_mixed_windows_train_alike_with_and_without_checkpointing(
    make_spec: SpecMaker, long_data: PreparedData, window: Window, tmp_path: Path
) -> None:
    """Layers that are run again in the backward pass must see the positions of the forward pass."""

    def spec(**training: Any) -> Any:
        return make_spec(
            "lora",
            data={"max_length": TARGET},
            context={"length": TARGET, "method": "yarn", "window": "mixed"},
            adapter={"dropout": 0.0},
            training={"max_steps": 3, "learning_rate": 1e-3, "batch_size": 1, "gradient_accumulation": 2, **training},
        )

    plain, trainer = trained(spec(), long_data, window, tmp_path)
    checkpointed, _ = trained(spec(gradient_checkpointing=True), long_data, window, tmp_path)
    pools = [batch["original_positions"] for number in range(3) for batch in trainer.train_dataset[number]]
    assert set(pools) == {True, False}
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, atol=1e-6, rtol=1e-5)


def test_mixed_windows_without_a_long_row_are_refused(
    make_spec: SpecMaker, long_data: PreparedData, window: Window
) -> None:
    spec = make_spec(
        "lora", data={"max_length": TARGET}, context={"length": TARGET, "method": "yarn", "window": "mixed"}
    )
    short = [row for row in long_data.train if len(row.input_ids) <= WINDOW]
    assert short
    with pytest.raises(EngineError) as refused:
        plan_lessons(spec, short, window)
    assert refused.value.code == "train.no_long_rows"
    assert "scaler-wizard mix" in refused.value.next_step


# ── norms and embeddings ──────────────────────────────────────────────────────────────────────────────────────────
def test_norms_and_embeddings_are_found_by_what_they_are() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    tied = Qwen3ForCausalLM(config)
    norms = ("input_layernorm", "k_norm", "norm", "post_attention_layernorm", "q_norm")
    assert names_of(tied, norms=True, embeddings=False) == norms
    assert names_of(tied, norms=False, embeddings=True) == ("model.embed_tokens",)
    assert names_of(family("Llama"), norms=False, embeddings=True) == ("lm_head", "model.embed_tokens")
    assert names_of(tied, norms=False, embeddings=False) == ()


@pytest.mark.parametrize("tied", [True, False])
def test_what_learns_beside_the_adapter_is_saved_loaded_and_merged(tied: bool, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = load_base(BaseRequest(tmp_path / "base", "none", True, torch.bfloat16, "cpu"))
    model = add_adapter(base, spec_adapter(), extras=AdapterExtras(norms=True, embeddings=True))
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in learning.values()} == {torch.float32}
    assert sum("norm" in name for name in learning) == 5
    assert sum("embed_tokens" in name or "lm_head" in name for name in learning) == (1 if tied else 2)
    ids = some_ids(2, 12) % 64
    seen: list[torch.dtype] = []
    base.model.layers[1].register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].dtype))
    optimizer = torch.optim.SGD(learning.values(), lr=0.3)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits.float().flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(seen) == {torch.bfloat16}, "wider copies widen nothing behind them"
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)

    wide = load_base(BaseRequest(tmp_path / "base", "none", True, torch.float32, "cpu"))
    again = PeftModel.from_pretrained(wide, str(tmp_path / "adapter")).eval()
    expected = again(input_ids=ids).logits
    with torch.no_grad():
        assert not torch.allclose(
            expected,
            load_base(BaseRequest(tmp_path / "base", "none", True, torch.float32, "cpu"))(input_ids=ids).logits,
            atol=1e-2,
        )
    again.merge_and_unload(safe_merge=True).save_pretrained(str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
