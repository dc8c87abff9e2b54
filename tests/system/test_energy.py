"""Energy as the processors' counters report it."""

from __future__ import annotations

from pathlib import Path

from ys_llm.system.energy import EnergyMeter


def package(root: Path, number: int, microjoules: int, *, name: str = "package-0") -> Path:
    zone = root / f"sys/class/powercap/intel-rapl:{number}"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    return zone


def test_what_all_packages_used_is_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    package(tmp_path, 0, 500)
    package(tmp_path, 1, 100, name="package-1")
    package(tmp_path, 2, 0, name="psys")  # counts the packages again
    meter = EnergyMeter(tmp_path)
    package(tmp_path, 0, 2_500)
    package(tmp_path, 1, 1_100, name="package-1")
    package(tmp_path, 2, 999_999, name="psys")
    meter.poll()
    assert meter.joules == 3_000 / 1e6


def test_a_counter_that_ran_over_is_followed(tmp_path: Path) -> None:
    package(tmp_path, 0, 900_000)
    meter = EnergyMeter(tmp_path)
    package(tmp_path, 0, 100_000)
    meter.poll()
    assert meter.joules == 0.2


def test_without_counters_nothing_is_claimed(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    meter.poll()
    assert meter.joules is None
