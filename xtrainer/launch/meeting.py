"""Can the processes of a run meet? If not, the address is named, where JAX would only abort."""

import contextlib
import errno
import socket
import sys
import threading
import traceback
from collections.abc import Iterator

from xtrainer.errors import ConfigError, PeerError
from xtrainer.launch.exits import ERROR_CODE, leave_now


def check_port(address: str) -> None:
    """Checks that process 0 can listen at an address.

    Args:
        address: ``host:port``; on any other host than this machine's loopback, the port is tried on
            all network interfaces, as JAX listens there.

    Raises:
        ConfigError: If another program listens there; JAX would end with a segmentation fault.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    host = host if host in ("127.0.0.1", "localhost", "::1") else ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        # Connections of an earlier program that are about to end are in nobody's way.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(port)))
            listener.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"coordinator_address: found another program that listens at {address}, "
                    "expected a free port for process 0. Choose another port, or end that program: "
                    "it may be left of an earlier run."
                ) from error
            # What else there is, JAX finds as well, and perhaps it can.


@contextlib.contextmanager
def meeting(
    address: str | None, process: int | None, count: int | None, timeout_s: float
) -> Iterator[None]:
    """Ends this process with an error unless what is done inside, to join, is done in time.

    Args:
        address: Where the processes meet; None: as JAX finds it.
        process: Number of this one, where it is known.
        count: How many there are, where it is known.
        timeout_s: How long to wait.
    """
    joined = threading.Event()

    def wait() -> None:
        if joined.wait(timeout_s):
            return
        own = "This process" if process is None else f"Process {process}"
        where = "the address that JAX has found" if address is None else address
        several = "all processes" if count is None else f"all {count} processes"
        error = PeerError(
            f"{own} has waited {timeout_s:g} s to join the run at {where}, expected {several} to "
            "come there within that time. One of them was not started, has failed, or cannot reach "
            "process 0 at this address. Look at the output of the others, check the address and "
            "the firewall, or allow more with initialize(timeout_s=...)."
        )
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        leave_now(ERROR_CODE)

    # JAX waits in C++, where no exception reaches it, and then aborts.
    threading.Thread(target=wait, name="xtrainer-meeting", daemon=True).start()
    try:
        yield
    finally:
        joined.set()
