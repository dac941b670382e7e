"""Two scripts that do the same from a fresh process: one step of the tiny network."""

MARK = "start: "
"""Begins the line in which a script says how long it took."""
