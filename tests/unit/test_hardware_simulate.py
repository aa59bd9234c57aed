def test_what_else_is_known_of_a_card_is_said_in_a_few_words() -> None:
    from engine.hardware.label import card_details
    from engine.hardware.machine import Gpu, Source

    card = Gpu(
        0,
        "RTX 4090",
        "nvidia",
        24,
        22,
        Source.NVML,
        compute_capability=(8, 9),
        driver="580.65",
        power_limit_watts=450.0,
        pcie_width=16,
        display_active=True,
    )
    assert card_details(card) == "driver 580.65, compute 8.9, 450 W, PCIe x16, drives a display"
    assert card_details(Gpu(0, "card", "amd", 1, 1, Source.SYSFS)) == ""
