"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in binary units: 1536 -> ``1.5 KiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def amount(count: float) -> str:
    """A count in thousands, millions, billions: 2750000 -> ``2.75M``."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if float(f"{count:.3g}") >= limit:  # 999,885,952 is 1 B
            return f"{count / limit:.3g}{letter}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def age(seconds: float) -> str:
    """One unit, for columns: ``45s``, ``3m``, ``2h``, ``5d``."""
    for length, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds // length:.0f}{letter}"
    return f"{max(0.0, seconds):.0f}s"


def clock(seconds: float) -> str:
    """Time left on the live line: ``0:45``, ``12:05``, ``2:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
