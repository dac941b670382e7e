"""What do peers add? An adapter each, against a bare loop of the peer's own backend.

An adapter is imported in the process that measures it, and has ``PEER``, a
:class:`benchmarks.peers.peer.Peer`. What is measured of it is in ``benchmarks.peers.measured``.
"""
