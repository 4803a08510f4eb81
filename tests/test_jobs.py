"Work in processes is neither lost nor waited for without end."

import os
from functools import partial
from pathlib import Path

from ipb_nb.jobs import in_processes
from starts import KILL


def killed_at_two(job):
    if job == 2:
        os.kill(os.getpid(), KILL)
    return job**2


def test_a_job_that_kills_its_process_is_alone_in_failing():
    assert dict(in_processes(killed_at_two, list(range(6)), 2)) == {0: 0, 1: 1, 2: None, 3: 9, 4: 16, 5: 25}


class Last:
    "The end of a long result; before it the process is killed, once."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        if not self.path.exists():
            self.path.touch()
            os.kill(os.getpid(), KILL)
        return bytes, (2**20,)


def long_result(path, job):
    return [bytes(8 * 2**20), Last(path / str(job))]


def test_a_process_killed_amid_a_long_result_is_not_waited_for(tmp_path):
    (tmp_path / '2').touch()  # two deaths are surely forgiven; the third may come when each job is alone
    for _job, (first, second) in in_processes(partial(long_result, tmp_path), [0, 1, 2], 2):
        assert len(first) == 8 * len(second) == 8 * 2**20
    assert len([*tmp_path.iterdir()]) == 3


def write_here(job):
    Path('made').touch()


def test_processes_work_where_their_caller_is(tmp_path, monkeypatch):
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        list(in_processes(write_here, [0, 1], 2))
        assert (tmp_path / name / 'made').exists()
