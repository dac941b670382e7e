"""Does a run still move on? A thread looks, and where it does not for too long, shows why.

The thread only reads what is there anyway: the step that was dispatched last, the open account of
the ledger, its beats, and in which modules the training thread is. So nothing is added to a step.
"""

import datetime
import logging
import math
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from xtrainer.checkpoint.durable import write_json
from xtrainer.config.redact import redact
from xtrainer.errors import HangError
from xtrainer.launch import peers
from xtrainer.launch.exchange import allowing, num_processes, runtime_process
from xtrainer.launch.exits import ERROR_CODE
from xtrainer.launch.inquiry import (
    Found,
    Standing,
    end_question,
    inquire,
    place,
    speaking,
)
from xtrainer.launch.stacks import stack_modules, stacks, stacks_text
from xtrainer.launch.waits import LONG_S, within
from xtrainer.loop.ledger import Ledger
from xtrainer.loop.pace import PaceWatch
from xtrainer.state import Progress

_LOG = logging.getLogger(__name__)

_DATA = ("xtrainer.data.prefetch", "xtrainer.data.loader")
_COMPILING = "xtrainer.step.programs"
_STARTING = ("idle", "step", "init", "restore", "compile")
_SHOW_S, _FLUSH_S = 10.0, 5.0
_MORE, _MORE_S = 1.1, 2.0
"""What has an error of its own at its limit is given this much longer."""


class Watched(Protocol):
    """What is looked at."""

    ledger: Ledger
    progress: Progress
    first_step: bool


class Limit(NamedTuple):
    """How long something may take without moving on.

    Attributes:
        name: Of the setting.
        seconds: Its value; infinite for none.
        more_s: How much later it is acted upon, since something else has the same limit.
    """

    name: str
    seconds: float
    more_s: float = 0.0

    def is_passed(self, quiet_s: float) -> bool:
        """Says whether nothing has moved on for too long."""
        return quiet_s >= self.seconds + self.more_s


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a run, in seconds; <= 0 for none. See ``TrainerConfig``."""

    startup_s: float = 3600.0
    hang_s: float = 1800.0
    loader_s: float = 1800.0
    validation_s: float = 1800.0
    save_s: float = 1800.0

    def of(self, doing: str, starting: bool = False) -> Limit:
        """Returns the limit of what a run does.

        Args:
            doing: An account of the ledger.
            starting: Whether no step has ended yet.

        Example:
            >>> Limits(hang_s=60.0).of("step")
            Limit(name='hang_timeout_s', seconds=60.0, more_s=0.0)
            >>> Limits(hang_s=60.0).of("step", starting=True).name
            'startup_timeout_s'
        """
        if doing == "data_wait":
            return _limit("loader_timeout_s", self.loader_s, has_error=True)
        if doing == "checkpoint":
            return _limit("save_timeout_s", self.save_s, has_error=True)
        if doing == "validation":
            return _limit("validation_timeout_s", self.validation_s)
        if doing in ("init", "restore", "compile") or (starting and doing in _STARTING):
            return _limit("startup_timeout_s", self.startup_s)
        return _limit("hang_timeout_s", self.hang_s)

    def longest_s(self) -> float:
        """Returns the longest of them, by far too long where one is none."""
        return max(value if value > 0 else LONG_S for value in asdict(self).values())

    def interval_s(self) -> float:
        """Returns how often to look: ten times within the shortest, at least once a second."""
        shortest = min((value for value in asdict(self).values() if value > 0), default=10.0)
        return min(1.0, shortest / 10)


def _limit(name: str, seconds: float, has_error: bool = False) -> Limit:
    more = (_MORE - 1) * seconds + _MORE_S if has_error else 0.0
    return Limit(name, seconds, more) if seconds > 0 else Limit(name, math.inf)


def doing_now(account: str, modules: list[str]) -> str:
    """Returns what a run does: waiting for data and compiling are part of another account.

    Args:
        account: That is open in the ledger.
        modules: Of the calls of the training thread, innermost first.

    Example:
        >>> doing_now("step", ["queue", "xtrainer.data.prefetch", "xtrainer.loop.train"])
        'data_wait'
        >>> doing_now("step", ["xtrainer.step.executor", "xtrainer.loop.train"])
        'step'
    """
    for module in modules:
        if module in _DATA:
            return "data_wait"
        if module == _COMPILING:
            return "compile"
    return account


class Quiet:
    """For how long has nothing changed? Time in which nobody has looked does not count.

    A process that was stopped, or a computer that slept, finds the clock far ahead; that is no
    hang, so that one look counts for no more than two usual ones.

    Args:
        interval_s: Between two looks.
    """

    def __init__(self, interval_s: float) -> None:
        self._most_s = 2 * interval_s
        self._mark: object = None
        self._at: float | None = None
        self.seconds = 0.0

    def look(self, mark: object, now: float) -> float:
        """Returns for how many seconds the mark has been what it is.

        Example:
            >>> quiet = Quiet(1.0)
            >>> [quiet.look(mark, now) for mark, now in (("a", 0), ("a", 1), ("a", 90), ("b", 91))]
            [0.0, 1.0, 3.0, 0.0]
        """
        before, self._at = self._at, now
        if mark != self._mark or before is None:
            self._mark, self.seconds = mark, 0.0
        else:
            self.seconds += min(now - before, self._most_s)
        return self.seconds


def verdict(own: int, limit: Limit, found: Found) -> str:
    """Returns in one line what hangs, who is missing and who is behind.

    Example:
        >>> found = Found({0: Standing(doing="step", for_s=2.04, step=5)})
        >>> verdict(0, Limit("hang_timeout_s", 2.0), found)[55:]
        "process 0 is at step 5, in 'step' for 2.0 s."
    """
    texts = [
        f"Nothing has moved on for longer than {limit.name}={limit.seconds:g}: "
        f"process {own} is {found.standings[own]}."
    ]
    for process, where in found.missing.items():
        texts.append(f"Process {process} ({where}) is missing: it is stopped, dead or cut off.")
    for process in found.behind():
        if process == own:
            texts.append("It is behind: the others wait for it.")
        else:
            texts.append(f"Process {process} is behind: {found.standings[process]}.")
    return " ".join(texts)


class Watchdog:
    """Looks after a run while it is entered, from a thread of its own.

    Args:
        trainer: What is looked at; the thread that enters is the one that trains.
        limits: How long things may take.
        on_hang: ``end`` the process with the code 124, or only ``report``.
        folder: Where ``crash_PROCESS.json`` is written; None: nowhere.
        flush: Called before the process is ended, so that no row is lost; from another thread.
        clock: Returns seconds; any beginning.
        tell: Called with the reason and the exit code when the process is about to be ended, by
            another thread.
    """

    def __init__(
        self,
        trainer: Watched,
        limits: Limits,
        on_hang: Literal["end", "report"] = "end",
        folder: Path | None = None,
        flush: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str, int], object] | None = None,
    ) -> None:
        self._tell = tell
        self._trainer, self._limits, self._on_hang = trainer, limits, on_hang
        self._folder, self._flush, self._clock = folder, flush, clock
        self._trains = threading.get_ident()
        self._quiet = Quiet(limits.interval_s())
        self._pace = PaceWatch(trainer, clock=clock)
        self._ask_at_s = 0.0  # not to ask again before it has been quiet for as long
        self._reported: float | None = None  # when a hang was, that has not ended yet
        self._limit, self._standing = limits.of("idle"), Standing()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Watchdog":
        self._trains = threading.get_ident()
        self.look()
        with ExitStack() as stack:
            stack.enter_context(speaking(self.describe))
            stack.enter_context(peers.last_words(self._last_words))
            stack.enter_context(allowing(self._limits.longest_s() * _MORE))
            self._stack = stack.pop_all()
        self._thread = threading.Thread(target=self._run, name="xtrainer-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if isinstance(error[1], Exception) and num_processes() > 1:
            self._write("".join(traceback.format_exception(error[1])), {})
        self._ended.set()
        self._stack.close()
        if self._thread is not None:
            self._thread.join(1.0)
        if error[0] is None:
            self._goes_on()  # it was reported, and has come to its end since the last look

    def describe(self) -> Standing:
        """Returns what the run does, with the stacks of all threads."""
        text = stacks_text(stacks(self._trains))
        return replace(self._standing, stacks=text)

    def look(self) -> None:
        """Looks once; what is found may end the process."""
        limit, mark = self._observe()
        quiet_s = self._quiet.look(mark, self._clock())
        self._limit = limit
        most_s = None if math.isinf(limit.seconds) else limit.seconds + limit.more_s
        doing, step = mark[-2:]
        self._standing = Standing(doing=doing, for_s=quiet_s, limit_s=most_s, step=step)
        if quiet_s == 0.0:
            self._goes_on()
        elif limit.is_passed(quiet_s) and quiet_s >= self._ask_at_s and self._reported is None:
            self._hangs(limit, mark)

    def _observe(self) -> tuple[Limit, tuple[Any, ...]]:
        """Returns what limit holds now, and all that may change while the run moves on."""
        trainer = self._trainer
        account, since = trainer.ledger.now()
        doing = doing_now(account, stack_modules(self._trains))
        mark = (account, since, trainer.ledger.beats, doing, trainer.progress.step)
        return self._limits.of(doing, trainer.first_step), mark

    def _run(self) -> None:
        while not self._ended.wait(self._limits.interval_s()):
            try:
                self.look()
                self._pace.look()
            except Exception:  # of a process that hangs, too, nothing else would tell
                _LOG.exception("The watchdog could not look after the run.")

    def _goes_on(self) -> None:
        self._ask_at_s = 0.0
        if self._reported is not None:
            waited_s, self._reported = self._clock() - self._reported, None
            _LOG.warning("The run goes on, %.1f s after it was reported to hang.", waited_s)

    def _hangs(self, limit: Limit, mark: tuple[Any, ...]) -> None:
        """Finds out who is missing, unless another process is about to."""
        quiet_s, own = self._quiet.seconds, runtime_process()
        self._ask_at_s = quiet_s + limit.seconds / 2
        found = inquire()
        if found is None:
            # Its verdict comes within the time of a question, and may end this process too.
            self._ended.wait(_SHOW_S)
            if self._on_hang == "report":
                self._reported = self._clock()
            return
        excused = {i: left_s for i, left_s in found.excused().items() if i != own}
        if self._ended.is_set() or self._observe()[1] != mark:
            pass  # it went on while the others were asked
        elif excused and not found.missing:
            other = max(excused, key=lambda i: excused[i])
            self._ask_at_s = quiet_s + min(excused[other], limit.seconds)
            _LOG.warning(
                "Process %d waits for process %d, which is %s: within its limit.",
                own, other, found.standings[other],
            )  # fmt: skip
        else:
            self._show(verdict(own, limit, found), found)
        end_question()

    def _show(self, text: str, found: Found) -> None:
        advice = (
            "Look at the stacks for what it waits in, and in the log of the process that is named. "
            f"Where it may take so long, set TrainerConfig({self._limit.name}=...) higher."
        )
        error = HangError(f"{text} {advice}")
        within(_SHOW_S, lambda: self._record(error, found))
        if self._on_hang == "end":
            within(_FLUSH_S, self._flush_rows)
            within(_FLUSH_S, lambda: self._give_up(text, error.exit_code))
            peers.leave(error, absent=found.missing)
        self._reported = self._clock()

    def _record(self, error: HangError, found: Found) -> None:
        shown = "\n".join(f"Process {i}:\n{s.stacks}" for i, s in found.standings.items())
        _LOG.error("%s\n%s", error, shown)
        own = runtime_process()
        others = {str(i): asdict(s) for i, s in found.standings.items() if i != own}
        missing = {str(i): where for i, where in found.missing.items()}
        self._write(str(error), {"missing": missing, "behind": found.behind(), "processes": others})

    def _last_words(self, reason: str) -> None:
        """Records that another process's failure ends this one."""
        self._write(reason, {})
        self._flush_rows()
        self._give_up(reason, ERROR_CODE)

    def _give_up(self, reason: str, code: int) -> None:
        if self._tell is not None:
            self._tell(reason, code)

    def _flush_rows(self) -> None:
        # Where the run is within a logger, it must not be called from here as well.
        if self._flush is not None and self._standing.doing != "logging":
            try:
                self._flush()
            except Exception:
                _LOG.exception("The newest rows could not be written.")

    def _write(self, reason: str, more: dict[str, Any]) -> None:
        if self._folder is None:
            return
        own, standing = runtime_process(), self._standing
        record = {
            "reason": reason,
            "process": own,
            "process_count": num_processes(),
            "place": place(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(),
            "doing": standing.doing,
            "for_s": standing.for_s,
            "limit_s": standing.limit_s,
            "step": standing.step,
            **more,
            "stacks": stacks(self._trains),
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / f"crash_{own}.json", redact(record))
        except OSError:
            _LOG.error("%s could not be written:\n%s", self._folder, traceback.format_exc())
