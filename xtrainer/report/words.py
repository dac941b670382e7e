"""How are numbers said to a person? Times, sizes and values in a few digits with their units."""

import math


def show_time(seconds: float) -> str:
    """Returns a time in the one or two units that tell most.

    Example:
        >>> show_time(0.0312), show_time(75), show_time(7512), show_time(200_000)
        ('31 ms', '1 min 15 s', '2 h 5 min', '2 d 7 h')
    """
    if seconds < 0.9995:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, size, below, part in (("min", 60, "s", 1), ("h", 3600, "min", 60)):
        if seconds < (3600 if unit == "min" else 86_400):
            rest = int(seconds % size) // part
            return f"{int(seconds // size)} {unit}" + (f" {rest} {below}" if rest else "")
    rest = int(seconds % 86_400) // 3600
    return f"{int(seconds // 86_400):,} d" + (f" {rest} h" if rest else "")


def show_bytes(count: float) -> str:
    """Returns a size in the largest unit that leaves a number of at least 1.

    Example:
        >>> show_bytes(512), show_bytes(3_598_888)
        ('512 B', '3.43 MiB')
    """
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    number = float(count)
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.3g} {units[0]}"


def show_number(value: float) -> str:
    """Returns a value of a metric in five digits.

    Example:
        >>> show_number(1.23456789), show_number(123456.0), show_number(float("nan"))
        ('1.2346', '123,456', 'nan')
    """
    if not math.isfinite(value):
        return repr(float(value))
    if abs(value) >= 10_000 and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.5g}"


def show_share(share: float) -> str:
    """Returns a share of a whole.

    Example:
        >>> show_share(0.12345), show_share(0.0)
        ('12.3 %', '0.0 %')
    """
    return f"{100 * share:.1f} %"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Returns a number of things.

    Example:
        >>> counted(1, "step"), counted(1200, "step"), counted(2, "loss", "losses")
        ('1 step', '1,200 steps', '2 losses')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
