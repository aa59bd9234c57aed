"""Rental prices: the snapshot with its age, a refresh through gpuhunt's own catalogue, and what a failure leaves."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import gpuhunt
import pytest
from gpuhunt._internal import storage
from gpuhunt._internal.catalog import OFFLINE_PROVIDERS
from planning import LLAMA_3B, card

from engine.errors import EngineError
from engine.estimate.cards import gpu_speed
from engine.estimate.cost import Tariff, estimate_cost
from engine.estimate.prices import OLD_DAYS, price_age_words, price_quotes, refresh_prices
from engine.estimate.speed import RunPlan, estimate_hours
from engine.estimate.workload import Workload
from engine.hardware.gpu_profiles import find_gpu_profile, load_gpu_profiles
from engine.hardware.price_catalog import open_catalogue, summed_up
from engine.hardware.prices import CardPrice, PriceList, age_days, prices_path, read_prices, write_prices
from scaler_tui.cli import main

TODAY = date(2026, 12, 1)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def offer(
    provider: str,
    price: float,
    name: str = "RTX4090",
    memory: float = 24.0,
    count: int = 1,
    *,
    spot: bool = False,
    flags: tuple[str, ...] = (),
    vendor: str = "nvidia",
) -> gpuhunt.CatalogItem:
    return gpuhunt.CatalogItem(
        provider=provider,
        instance_name=f"{name}-{count}",
        location="eu",
        price=price,
        cpu=8,
        memory=32.0,
        gpu_count=count,
        gpu_name=name,
        gpu_memory=memory,
        spot=spot,
        disk_size=None,
        gpu_vendor=gpuhunt.AcceleratorVendor(vendor),
        flags=list(flags),
    )


OFFERS = (
    offer("runpod", 0.50),
    offer("runpod", 0.70),
    offer("verda", 1.60, count=4),
    offer("nebius", 0.80),
    offer("runpod", 0.10, spot=True),
    offer("runpod", 0.05, flags=("runpod-cluster",)),
    offer("runpod", 16.0, "H100", 80.0, 8),
    offer("gcp", 3.0, "v5p", 95.0, vendor="google"),
    offer("aws", 0.3, "P100", 16.0),
)


def published(folder: Path, offers: tuple[gpuhunt.CatalogItem, ...]) -> str:
    """The offers laid out as dstack's bucket publishes them, and the address of that."""
    for provider in OFFLINE_PROVIDERS:
        place = folder / provider / "20261201"
        place.mkdir(parents=True)
        (folder / provider / "version").write_text("20261201\n")
        table = place / f"{provider}.csv"
        storage.dump([item for item in offers if item.provider == provider], str(table))
        with zipfile.ZipFile(place / "catalog.zip", "w") as archive:
            archive.write(table, f"{provider}.csv")
    return folder.as_uri()


def test_a_refresh_reads_the_real_catalogue_and_every_later_estimate_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gpu_speed(card("RTX 4090")).rent_usd_per_hour
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", published(tmp_path / "bucket", OFFERS))
    refresh_prices(today=TODAY)
    device = gpu_speed(card("RTX 4090"))
    assert device.rent_usd_per_hour is not None
    assert device.rent_usd_per_hour != before
    assert (device.rent_usd_per_hour.low, device.rent_usd_per_hour.likely, device.rent_usd_per_hour.high) == (
        0.4,
        0.5,
        0.8,
    )
    assert "2026-12-01" in device.rent_source
    hours = estimate_hours(Workload(LLAMA_3B), device, RunPlan(1e8))
    cost = estimate_cost(hours, device, Tariff(True))
    assert cost.likely == pytest.approx((hours.likely + 0.25) * 0.5)
    assert "2026-12-01" in cost.breakdown[0].source
    h100 = find_gpu_profile("H100")
    assert h100 is not None
    assert h100.rent_low_usd_per_hour == 2.0


def test_a_card_without_fresh_offers_keeps_the_snapshot_and_its_own_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = find_gpu_profile("A100 80GB")
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", published(tmp_path / "bucket", OFFERS))
    refresh_prices(today=TODAY)
    assert find_gpu_profile("A100 80GB") == shipped
    quotes = {quote.id: quote for quote in price_quotes(today=TODAY)}
    assert quotes["rtx-4090-24gb"].refreshed
    assert quotes["rtx-4090-24gb"].age_days == 0
    assert not quotes["a100-80gb"].refreshed
    assert quotes["a100-80gb"].age_days == (TODAY - date.fromisoformat(quotes["a100-80gb"].read_on)).days


def test_spot_offers_conditions_and_unknown_cards_are_left_out_and_machines_divided_by_their_cards() -> None:
    prices = summed_up(OFFERS, today=TODAY)
    assert set(prices.cards) == {"rtx-4090-24gb", "h100-sxm-80gb"}
    assert prices.cards["rtx-4090-24gb"] == CardPrice(0.4, 0.5, 0.8, ("nebius", "runpod", "verda"), 4)
    assert prices.cards["h100-sxm-80gb"].typical == 2.0


def test_every_card_of_gpuhunt_that_we_know_is_recognised_by_its_name_there() -> None:
    known = [offer("runpod", 1.0, info.name, info.memory) for info in gpuhunt.KNOWN_NVIDIA_GPUS]
    cards = set(summed_up(known, today=TODAY).cards)
    listed = {profile.id for profile in load_gpu_profiles() if profile.rent_low_usd_per_hour is not None}
    assert listed - cards <= {"h100-pcie-80gb"}, "gpuhunt does not tell PCIe from SXM"
    assert "rtx-6000-ada-48gb" in cards
    assert "rtx-pro-6000-blackwell-96gb" in cards


def test_without_a_network_the_failure_is_clear_and_the_prices_stay_with_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", (tmp_path / "nowhere").as_uri())
    before = price_quotes(today=TODAY)
    with pytest.raises(EngineError) as caught:
        refresh_prices(today=TODAY)
    assert caught.value.code == "prices.unreachable"
    assert "8 days ago" in caught.value.next_step
    assert not prices_path().exists()
    assert price_quotes(today=TODAY) == before


def test_without_gpuhunt_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    assert main(["prices", "--refresh"]) == 2
    message = capsys.readouterr().err
    assert "scaler-wizard[prices]" in message
    assert "days ago" in message
    assert main(["prices", "T4"]) == 2, "nobody lists the T4"


def test_a_catalogue_without_known_cards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", published(tmp_path / "bucket", OFFERS[-1:]))
    with pytest.raises(EngineError, match="no offer for any card"):
        refresh_prices(open_catalogue(), today=TODAY)
    assert not prices_path().exists()


def test_a_list_is_read_back_as_it_was_written() -> None:
    prices = PriceList("2026-12-01", "test", {"t4-16gb": CardPrice(0.1, 0.2, 0.3, ("a",), 2)})
    path = write_prices(prices)
    assert read_prices() == prices
    assert [entry.name for entry in path.parent.iterdir()] == ["prices.json"]
    again = replace_price(prices, 0.25)
    write_prices(again)
    assert read_prices() == again
    found = find_gpu_profile("T4")
    assert found is not None
    assert found.rent_typical_usd_per_hour == 0.25


def replace_price(prices: PriceList, typical: float) -> PriceList:
    card_price = prices.cards["t4-16gb"]
    changed = CardPrice(card_price.low, typical, card_price.high, card_price.providers, card_price.offers)
    return PriceList(prices.read_on, prices.source, {"t4-16gb": changed})


@pytest.mark.parametrize("text", ["", "{}", '{"read_on": "soon", "source": "", "cards": {}}', "[1]", "\x00"])
def test_a_damaged_list_is_named_and_estimates_go_on_with_the_snapshot(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = gpu_speed(card("RTX 4090"))
    path = prices_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert gpu_speed(card("RTX 4090")) == shipped
    assert main(["prices"]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert "Traceback" not in message


def test_the_age_is_told_in_days_and_an_old_list_asks_to_be_refreshed() -> None:
    assert age_days("2026-11-23", TODAY) == 8
    assert age_days("2026-12-24", TODAY) == 0
    assert price_age_words("2026-12-01", today=TODAY) == "read today"
    assert price_age_words("2026-11-30", today=TODAY) == "read on 2026-11-30, 1 day ago"
    assert "refresh" in price_age_words("2026-01-01", today=TODAY)
    assert age_days("2026-01-01", TODAY) > OLD_DAYS


def test_the_command_shows_card_range_providers_day_and_age(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "a100 80gb", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (quote,) = document["prices"]
    assert document["unit"] == "usd_per_hour"
    assert quote["low"] < quote["typical"] < quote["high"]
    assert quote["providers"] == ["vast", "lambda", "runpod"]
    assert quote["age_days"] == age_days(quote["read_on"])
    assert main(["prices"]) == 0
    text = capsys.readouterr().out
    assert "A100 80GB" in text
    assert f"{quote['age_days']} d" in text
    assert "snapshot" in text


def test_an_unknown_card_gets_the_nearest_names_and_an_unlisted_one_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["prices", "RTX 4091"]) == 2
    assert "RTX 4090 24GB" in capsys.readouterr().err
    assert main(["prices", "M3 Max"]) == 2
    assert "No rental price is known" in capsys.readouterr().err


def test_a_price_seen_once_is_a_range_all_the_same() -> None:
    once = gpu_speed(replace(card("L40S"), name="L40S 48GB")).rent_usd_per_hour
    assert once is not None
    assert once.low < once.likely < once.high
