"How tests start processes: copies where the machine makes them; afresh on Windows, and anywhere with IPB_SPAWN=1."

import multiprocessing
import signal

import pytest

from ipb_nb.jobs import starts_afresh

KILL = getattr(signal, 'SIGKILL', signal.SIGTERM)  # (on Windows, SIGTERM ends a process at once)


def only_afresh():
    "Let Python know no other way to start processes, as on Windows."
    for name in ('fork', 'forkserver'):
        multiprocessing.context._concrete_contexts.pop(name, None)
    multiprocessing.set_start_method('spawn', force=True)


def copying(method='fork'):
    "The context of processes that are copies of this one; a test that needs it is skipped where there is none."
    if starts_afresh():
        pytest.skip('no process is a copy here')
    return multiprocessing.get_context(method)
