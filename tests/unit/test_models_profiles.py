"""The shipped shapes of well-known models."""

from __future__ import annotations

import re
from datetime import date

import pytest

from engine.models.analyze import analyze
from engine.models.families import find_family
from engine.models.model_profiles import (
    ModelProfile,
    find_model_profile,
    larger_models,
    load_model_profiles,
    near_model_names,
)
from engine.models.resolve import ModelKind, resolve_model
from engine.models.shape import count_parameters, read_shape

PROFILES = load_model_profiles()


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_size_is_the_arithmetic_of_the_shape_and_agrees_with_the_publisher(profile: ModelProfile) -> None:
    assert count_parameters(read_shape(profile.config, profile.id)) == profile.parameters
    assert profile.parameters == pytest.approx(profile.published_parameters, rel=0.015)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_entry_has_a_known_family_a_licence_a_source_and_a_date(profile: ModelProfile) -> None:
    assert find_family(profile.config["model_type"]).known
    assert profile.license
    assert profile.checked_against
    assert profile.source == f"https://huggingface.co/{profile.hub_id}"
    assert date.fromisoformat(profile.checked) >= date(2026, 1, 1)
    assert re.fullmatch(r"[a-z0-9.-]+", profile.id)


def test_no_two_entries_share_a_name() -> None:
    names = [name.lower() for p in PROFILES for name in (p.id, p.hub_id, *p.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_known_model_is_planned_without_any_file_or_network(profile: ModelProfile) -> None:
    found = analyze(profile.id)
    assert (found.parameters, found.parameters_source, found.source) == (profile.parameters, "profile", "profile")
    assert found.known
    assert found.weight_bytes == 2 * profile.parameters


@pytest.mark.parametrize("name", ["llama-3.2-3b", "LLAMA-3.2-3B", "meta-llama/Llama-3.2-3B", "Llama-3.2-3B"])
def test_model_is_found_by_id_hub_id_and_short_name_in_any_case(name: str) -> None:
    profile = find_model_profile(name)
    assert profile is not None
    assert profile.id == "llama-3.2-3b"


def test_instruct_version_keeps_its_own_repository_for_the_download() -> None:
    ref = resolve_model("meta-llama/Llama-3.2-3B-Instruct")
    assert (ref.kind, ref.repo_id, ref.needs_download) == (ModelKind.PROFILE, "meta-llama/Llama-3.2-3B-Instruct", True)
    assert any("gated" in note for note in ref.notes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3.2-3b", ["llama-3.1-8b", "llama-3.1-70b"]),
        ("qwen2.5-32b", ["qwen2.5-72b"]),
        ("qwen3-14b", ["qwen3-30b-a3b", "qwen3-32b"]),
        ("llama-2-70b", []),
        ("tinyllama-1.1b", []),
    ],
)
def test_larger_models_are_of_the_series_and_smallest_first(name: str, expected: list[str]) -> None:
    assert [profile.id for profile in larger_models(analyze(name))] == expected


def test_fine_tune_of_a_known_model_gets_the_larger_ones_of_that_model() -> None:
    from dataclasses import replace

    tuned = replace(analyze("qwen2.5-0.5b"), name="/home/me/my-qwen", source="/home/me/my-qwen")
    assert larger_models(tuned)[0].id == "qwen2.5-1.5b"


def test_near_names_are_hub_ids_for_a_hub_id_and_nothing_for_nonsense() -> None:
    assert near_model_names("meta-lama/Llama-3.2-3B")[0] == "meta-llama/Llama-3.2-3B"
    assert near_model_names("zzzzqqqq") == ()


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llama-3.1-8b", "context_length", 131072),
        ("gemma-2-9b", "norm_placement", "sandwich"),
        ("gemma-2-9b", "sliding_layers", 21),
        ("gemma-3-4b", "qk_norm", "head"),
        ("gemma-3-4b", "sliding_layers", 29),
        ("olmo-2-7b", "norm_placement", "post"),
        ("olmo-2-7b", "qk_norm", "full"),
        ("pythia-1b", "norm_placement", "parallel"),
        ("falcon-7b", "key_value_heads", 1),
        ("falcon-40b", "key_value_heads", 8),
        ("falcon-7b", "mlp_kind", "plain"),
        ("qwen2.5-7b", "attention_bias", True),
        ("qwen3-8b", "attention_bias", False),
        ("stablelm-2-1.6b", "norm", "layernorm"),
        ("phi-4-mini", "tied_embeddings", True),
    ],
)
def test_known_facts_about_known_models(name: str, field: str, value: object) -> None:
    assert getattr(analyze(name), field) == value


def test_mixtures_say_how_many_parameters_one_token_uses() -> None:
    assert analyze("mixtral-8x7b").active_parameters == pytest.approx(12.9e9, rel=0.01)
    assert analyze("qwen3-30b-a3b").active_parameters == pytest.approx(3.3e9, rel=0.02)
    assert analyze("llama-3.2-1b").active_parameters == analyze("llama-3.2-1b").parameters
