"""Scripts that do the same from a fresh process: one step of the tiny network.

``bare`` and ``torch`` are hand-written, ``trainer`` uses xtrainer, and the others a peer each.
"""

MARK = "start: "
"""Begins the line in which a script says how long it took."""
