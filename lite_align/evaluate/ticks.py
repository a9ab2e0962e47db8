"""Ticks of a logarithmic axis. Imports matplotlib, so it is imported where something is drawn."""

from matplotlib.ticker import LogFormatterSciNotation


class PlainNumbers(LogFormatterSciNotation):
    """The ticks that matplotlib would label, as plain numbers: 0.4, 1, 20; not as powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of one tick; empty where it has none."""
        return f"{x:g}" if super().__call__(x, pos) else ""
