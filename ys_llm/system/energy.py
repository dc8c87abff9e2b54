"""The energy that the processors use, as their own counters report it (RAPL, on Linux)."""

from pathlib import Path

_MILLION = 1_000_000


class EnergyMeter:
    """Joules of the processor packages since it was made; all of the machine, not this process.

    A package's counter begins again after some ten minutes to hours, so `poll` has to be called
    more often than that. Many systems let only root read it.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is the folder that holds `sys`."""
        zones = sorted((root / "sys/class/powercap").glob("*:*"))
        packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
        self._last = {
            zone: count for zone in packages if (count := _number(zone / "energy_uj")) is not None
        }
        self._microjoules = 0

    def poll(self) -> None:
        """Add what was used since the last call."""
        for zone, before in self._last.items():
            now = _number(zone / "energy_uj")
            if now is None:
                continue
            wrapped = (_number(zone / "max_energy_range_uj") or before) if now < before else 0
            self._microjoules += now - before + wrapped
            self._last[zone] = now

    @property
    def joules(self) -> float | None:
        """Joules up to the last `poll`; None where no counter can be read."""
        return self._microjoules / _MILLION if self._last else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
