"""Sizes are printed with the unit a reader would choose."""

import pytest

from ys_llm.system.sizes import human_size


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0.0 kB"),
        (1_234, "1.2 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (24_000_000_000, "24.0 GB"),
        (4_611_686_018_430_000_000, "4,611,686.0 TB"),
        (None, "unknown"),
    ],
)
def test_a_size_is_shown_in_its_unit(n_bytes: int | None, expected: str) -> None:
    assert human_size(n_bytes) == expected
