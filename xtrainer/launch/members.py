"""How are the processes of a local run watched and ended together?"""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xtrainer.errors import ConfigError

TIMEOUT_CODE = 124
"""The exit code of a run that took longer than it may, as of the shell's ``timeout``."""

_POLL_S = 0.05
_AGAIN_S = 1.0  # a signal within this time of the first is the same one, sent twice
_DRAIN_S = 1.0  # for what processes left behind still have to say
_KILL_S = 10.0  # a process that outlives SIGKILL for so long hangs in the kernel
_LAST_LINES = 40
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 20
# A line ends with \n, or with the \r of a progress bar that draws itself anew.
_LINE_ENDS = re.compile(rb"(?<=\n)|(?<=\r)(?=[^\n])")


@dataclass
class Member:
    """One process of the run; ``code`` is negative for a signal, None while it runs."""

    index: int
    process: subprocess.Popen[bytes]
    last_lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    code: int | None = None

    def look(self) -> None:
        """Sets ``code`` once the process has ended, without giving its number free."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            self.code = self.process.poll()
            return
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            own = ended.si_code == os.CLD_EXITED
            self.code = ended.si_status if own else -ended.si_status

    def send(self, number: int) -> None:
        """Sends a signal to the process alone: its own children are its own matter."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def kill_group(self) -> None:
        """Kills the process and whatever it has left behind in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Pipe:
    """One output of one process, cut into lines."""

    member: Member
    is_error: bool
    rest: bytes = b""

    def write(self, data: bytes, at_end: bool = False) -> None:
        """Puts out the lines that are whole now, and at the end what is left."""
        *pieces, self.rest = _LINE_ENDS.split(self.rest + data)
        if self.rest and (at_end or len(self.rest) > _LONGEST_LINE):
            pieces, self.rest = [*pieces, self.rest], b""
        lines = [piece.rstrip(b"\r\n") for piece in pieces if piece != b"\r"]
        if self.is_error:
            self.member.last_lines.extend(lines)
        _emit(b"".join(b"[%d] %s\n" % (self.member.index, line) for line in lines), self.is_error)


class LocalRun:
    """The processes of a run, what they write, and why they are being ended."""

    def __init__(self, count: int, failure_grace_s: float, stop_grace_s: float) -> None:
        self.members: list[Member] = []
        self._count = count
        self._failure_grace_s = failure_grace_s
        self._stop_grace_s = stop_grace_s
        self._selector = selectors.DefaultSelector()
        self._cause: Member | None = None  # the first that failed
        self._stopped_by: int | None = None  # a signal that was passed on
        self._stopped_at = 0.0
        self._timed_out = False
        self._kill_at: float | None = None
        self._give_up_at = float("inf")

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> int:
        """Starts one more process and returns its number in the system.

        Raises:
            ConfigError: If there is no such program.
        """
        try:
            process = subprocess.Popen(
                list(command),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"command: {command[0]!r} could not be started ({error.strerror}), expected a "
                "program. For a Python script put sys.executable before it."
            ) from error
        member = Member(len(self.members), process)
        self.members.append(member)
        for stream in (process.stdout, process.stderr):
            pipe = Pipe(member, is_error=stream is process.stderr)
            self._selector.register(stream, selectors.EVENT_READ, pipe)  # type: ignore[arg-type]
        if hasattr(os, "pidfd_open"):  # wakes at once: who fails first takes others along soon
            self._selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ)
        return process.pid

    def wait(self, signals: list[int], timeout_s: float | None) -> int:
        """Returns the exit code of the run, when all of its processes have ended."""
        ends_at = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self._running() and time.monotonic() < self._give_up_at:
            self._read(_POLL_S)
            for member in self._running():
                member.look()
                if member.code:
                    self._note_failure(member)
            if signals:
                self._pass_on(signals.pop(0))
            if time.monotonic() >= ends_at and not self._timed_out:
                self._timed_out = True
                self._end(f"the run took longer than {timeout_s:g} s; all processes are ended")
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill()
        end = time.monotonic() + _DRAIN_S
        while self._selector.get_map() and time.monotonic() < end:
            self._read(_POLL_S)
        return self._result()

    def close(self) -> None:
        """Ends what still runs and closes every pipe."""
        for member in self._running():
            member.send(signal.SIGTERM)
        end = time.monotonic() + self._failure_grace_s
        while self._running() and time.monotonic() < end:
            time.sleep(_POLL_S)
            for member in self._running():
                member.look()
        for member in self.members:
            member.kill_group()
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(_KILL_S)
        for key in list(self._selector.get_map().values()):
            self._close(key)
        self._selector.close()

    def _running(self) -> list[Member]:
        return [member for member in self.members if member.code is None]

    def _read(self, timeout_s: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_s)
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._close(key)  # has ended
                continue
            data = os.read(key.fd, _CHUNK)
            key.data.write(data, at_end=not data)
            if not data:
                self._close(key)

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        if isinstance(key.fileobj, int):
            os.close(key.fileobj)
        else:
            key.fileobj.close()  # type: ignore[attr-defined]

    def _note_failure(self, member: Member) -> None:
        stop = self._stopped_by or 0
        if self._cause is not None or self._timed_out or member.code in (-stop, 128 + stop):
            return
        self._cause = member
        rest = "the others are ended" if self._running() else "none is left"
        self._end(f"{self._ending(member)}; {rest}")

    def _pass_on(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._stopped_by is None:
            self._stopped_by, self._stopped_at = number, now
            self._kill_at = min(self._kill_at or float("inf"), now + self._stop_grace_s)
            _say(f"{name} is passed on to all processes; once more ends them at once")
            for member in self._running():
                member.send(number)
        elif now - self._stopped_at > _AGAIN_S:
            self._kill()

    def _end(self, reason: str) -> None:
        _say(reason)
        for member in self._running():
            member.send(signal.SIGTERM)
        end = time.monotonic() + self._failure_grace_s
        self._kill_at = min(self._kill_at or end, end)

    def _kill(self) -> None:
        self._kill_at = None
        self._give_up_at = min(self._give_up_at, time.monotonic() + _KILL_S)
        for member in self._running():
            member.kill_group()

    def _ending(self, member: Member) -> str:
        code = member.code or 0
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (the system does that when memory runs out)"
        return f"process {member.index} of {self._count} {how}"

    def _result(self) -> int:
        for member in self._running():
            _say(f"process {member.index} does not end, not even by SIGKILL; it is left")
        if self._cause is not None:
            lines = [b"[%d] %s\n" % (self._cause.index, line) for line in self._cause.last_lines]
            wrote = "; its last lines on stderr:" if lines else " and wrote nothing to stderr"
            _say(f"{self._ending(self._cause)}{wrote}")
            _emit(b"".join(lines), is_error=True)
        if self._timed_out:
            return TIMEOUT_CODE
        first = self._cause or next((m for m in self.members if m.code != 0), None)
        if first is None:
            return 0
        code = -signal.SIGKILL if first.code is None else first.code
        return code if code >= 0 else 128 - code


def _say(sentence: str) -> None:
    _emit(f"[launch] {sentence}\n".encode(), is_error=True)


def _emit(data: bytes, is_error: bool) -> None:
    stream = sys.stderr if is_error else sys.stdout
    stream.flush()
    binary = getattr(stream, "buffer", None)
    if binary is None:  # a notebook's
        stream.write(data.decode("utf-8", "replace"))
    else:
        binary.write(data)
    stream.flush()
