"""Numbers as people read them."""


def share(value: float) -> str:
    """A share in per cent: 0.9123 -> `91.2`."""
    return f"{100 * value:.1f}"


def power(rate: float) -> str:
    """A bit error rate: 0.00003 -> `3e-5`."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def size(count: int) -> str:
    """A size in bytes: 9232384 -> `8.8 MiB`, 312 -> `312 B`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def clipped(text: str, width: int) -> str:
    """At most `width` characters, the last an ellipsis where something is missing."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
