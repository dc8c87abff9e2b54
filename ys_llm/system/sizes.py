"""Numbers of bytes in words."""

_UNITS = ("kB", "MB", "GB", "TB")


def human_size(n_bytes: int | None) -> str:
    """`1.5 MB`, in powers of 1,000 with one decimal; `unknown` where nothing is known."""
    if n_bytes is None:
        return "unknown"
    size, unit = n_bytes / 1e3, _UNITS[0]
    for larger in _UNITS[1:]:
        if size < 999.95:  # rather than 1,000.0, use the larger unit
            break
        size, unit = size / 1e3, larger
    return f"{size:,.1f} {unit}"
