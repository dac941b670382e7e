"""How long is anything waited for? Every wait has a name and a bound; this is the list of them.

Waits in a training run are watched by ``loop/watchdog.py``: where nothing moves on for longer than
a limit of the ``TrainerConfig``, the run is shown and ended, whatever it waits in. A wait within
another thread than the one that trains shows there, as that of what waits for it. The others:

=======================================  ==========================================  ==============
wait                                     bound                                       where
=======================================  ==========================================  ==============
start-up, compilation, restore           ``startup_timeout_s``                       loop/watchdog
a step, a callback, a logger             ``hang_timeout_s``                          loop/watchdog
a batch of a loader                      ``loader_timeout_s``                        loop/watchdog
a batch of a validation                  ``validation_timeout_s``                    loop/watchdog
a save in the background                 ``save_timeout_s``                          checkpoint
old steps that are being removed         60 s, then left to the next start           checkpoint
a thread that reads a loader, at its end 10 s, then left behind                      data/prefetch
a terminal that takes nothing, at the end 5 s, then left behind                      callbacks
an answer of another process             300 s, more while a watchdog allows more    exchange
the other processes at the start         ``initialize(timeout_s=300)``               meeting
the others at the end of the program     300 s                                       JAX
a process that is silent                 ``heartbeat_timeout_s``, 20 or 30 s         JAX
the end of the others after a failure    ``failure_grace_s``, 5 s                    peers
a question about a hang                  5 s, and 2 s for the service                inquiry
what processes say of their pace         2 s                                         board
last words before a process leaves       1 s or 5 s                                  exits, peers
the processes of a local run             ``run_local(timeout_s)``; graces at its end local, members
a run under Ray                          the run itself, which is watched inside     ray
a job under SLURM                        its time limit                              slurm
version control, asked for a commit      5 s                                         checkpoint
a run that is verified                   ``verify-resume --timeout``                 cli
=======================================  ==========================================  ==============
"""

import threading
from collections.abc import Callable

LONG_S = 30 * 86400.0
"""Stands for no limit where a number is needed."""


def within(seconds: float, call: Callable[[], object]) -> bool:
    """Calls something in a thread, which is left behind where it takes too long.

    Args:
        seconds: How long to wait.
        call: What it raises is shown as by any thread.

    Returns:
        Whether it has ended in time.

    Example:
        >>> within(5.0, lambda: print("done"))
        done
        True
    """
    thread = threading.Thread(target=call, name="xtrainer-within", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python is about to end: there are no more threads
        call()
        return True
    thread.join(seconds)
    return not thread.is_alive()
