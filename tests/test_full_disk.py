"Commands that write, on a disk without room, with some, and with almost enough: an error, and then it goes on."

import os
import re
import subprocess
import sys

import pytest

from disks import Disk
from ipb_nb.dataset import ColonyDataset
from test_kills import COMMANDS, Trial, below, given  # noqa: F401 (a fixture)

pytestmark = pytest.mark.long
LABEL = """import sys
from ipb_nb.dataset import ColonyDataset
ds = ColonyDataset('cells')
try:
    ds.annotate(ds.colonies.index[0], 'fine', 'ana')
except OSError as e:
    sys.exit(str(e))"""
MORE = [*COMMANDS, 'verdict']


@pytest.fixture
def disk(tmp_path):
    with Disk(tmp_path / 'disk') as d:
        yield d


def outcome(trial, name, place):
    "The exit code of the command, and what it said."
    args = [sys.executable, '-c', LABEL] if name == 'verdict' else [f'ipb-{trial.args[0]}', *trial.args[1:]]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
    p = subprocess.run(args, cwd=place, env=os.environ | dict(PATH=path), capture_output=True, text=True)
    return p.returncode, p.stdout + p.stderr


@pytest.mark.parametrize('name', MORE)
def test_a_full_disk(name, given, disk, tmp_path):  # noqa: F811
    trial = Trial('annotate' if name == 'verdict' else name, given, disk.folder)
    code, said = outcome(trial, name, alone := trial.place())
    assert not code, said
    whole, need = below(alone), sum(f.stat().st_size for f in alone.rglob('*') if f.is_file())
    stopped = 0
    for share in (0, 0.2, 0.5, 0.9):
        place = trial.place()
        before = sum(f.stat().st_size for f in place.rglob('*') if f.is_file())
        disk.leave(int(share * (need - before)))
        code, said = outcome(trial, name, place)
        stopped += code == 1
        assert code in (0, 1) and 'Traceback' not in said, (share, code, said)
        assert not code or re.search('No space left|Is the disk full', said), (share, said)
        for f in place.glob('*/dataset.json'):
            assert len(ColonyDataset(f.parent).labels())
        disk.leave(1 << 30)
        again, said = outcome(trial, name, place) if code or name == 'verdict' else (0, '')
        assert not again, (share, said)
        found = below(place)
        differs = sorted(f for f in {*found, *whole} if found.get(f) != whole.get(f))
        if name == 'verdict':
            assert {*ColonyDataset(place / 'cells').annotations().vote} == {'fine'}
        else:
            assert not differs, (share, differs)
        assert not [f for f in place.rglob('*') if '.partial' in f.name]
    print(f'{name}: stopped {stopped} times of 4')
    assert stopped
