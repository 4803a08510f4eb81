"""Random commands on one experiment, killed, without room and two at a time: nothing is lost, half-written or outside.

IPB_CHAOS_SECONDS (300) and IPB_CHAOS_SEED (another one each time) are read from the environment."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack, suppress
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from disks import Disk
from ipb_nb.commands import find_command
from ipb_nb.core import InputError, run_command
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import run_state
from ipb_nb.manifest import verify_pictures
from ipb_nb.split import Split
from starts import copying

pytestmark = pytest.mark.long
TINY = '--epochs 2 --steps 8 --batch_size 8 --scales 32 --finetune 1 --pretrain_epochs 1 --threshold 0.34 --threads 1'
COMMANDS = [
    'import more/{k} cells --classes fine,middle,coarse --add',
    'split cells --name s{k} --labeled 0.5 --test 0.2 --folds 2',
    'annotate cells --assign_to p{k},q{k} --n 20 --among all',
    'dataset cells',
    'simulate sim{k} --preset tiny --wells 2 --frames 2 --size 320',
    'detect exp/raw found --contact_sheet --resume',
    f'train fixed --out run{{k}} --no_notebook --resume {TINY}',
    'predict whole exp/raw --out answers --unscaled --resume',
    'export whole --out student{k}',
    'report whole',
]


def verdict_of(name, colony_id, classes):
    "The class that an annotator always gives a colony."
    return classes[crc32(f'{name} {colony_id}'.encode()) % len(classes)]


def label(ledger, name, seed):
    "Ten verdicts; each is noted where nobody disturbs it once it was accepted."
    ds, rng = ColonyDataset('cells'), np.random.default_rng(seed)
    for i in rng.choice(ds.colonies.index, 10):
        ds.annotate(i, verdict_of(name, i, ds.classes), by=name)
        os.write(ledger, f'{name},{i}\n'.encode())
        time.sleep(0.02)


def be(place, said, room, ledger, line, seed):
    "Run a command as a process of its own would."
    import resource

    os.setsid()
    for fd in (1, 2):
        os.dup2(said, fd)
    sys.stdout, sys.stderr = (open(fd, 'w', closefd=False) for fd in (1, 2))  # (not where pytest keeps what is said)
    os.chdir(place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    name, *args = line.split()
    if name == 'label':
        try:
            label(ledger, args[0], seed)
        except (InputError, OSError) as e:
            sys.exit(f'{e}')
    else:
        sys.argv = [f'ipb-{name}', *args]
        run_command(find_command(f'ipb-{name}'), args)


class Chaos:
    "An experiment, and what was done to it."

    def __init__(self, folder, class_folders, seed, disk):
        self.disk, self.full = disk, 0
        self.place, self.rng, self.seed, self.done = folder / 'experiment', np.random.default_rng(seed), seed, []
        self.ledger = os.open(folder / 'ledger', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.noted, self.sayings = folder / 'ledger', folder / 'said'
        self.sayings.mkdir()
        for k in range(4):
            for name in ('middle', 'coarse'):
                (to := self.place / 'more' / str(k) / name).mkdir(parents=True)
                for f in sorted((class_folders / name).iterdir())[5 * k : 5 * k + 5]:
                    shutil.copy(f, to / f'{k}-{f.name}')
        shutil.copytree(class_folders / 'fine', self.place / 'first' / 'fine')
        for name in ('middle', 'coarse'):
            (to := self.place / 'first' / name).mkdir()
            for f in sorted((class_folders / name).iterdir())[20:]:
                shutil.copy(f, to)
        shutil.copytree(class_folders, self.place / 'classes')
        for line in (
            'import first cells',
            'import classes fixed',
            'split fixed --labeled 0.25 --test 0.25 --folds 2',
            'simulate exp --preset tiny --wells 2 --frames 2 --size 480',
            'detect exp/raw through --contact_sheet',
            f'train fixed --out whole --no_notebook {TINY} --method supervised',
        ):
            p, said = self.start(line)
            p.join()
            assert p.exitcode == 0, said.read_text()

    def start(self, line, room=0):
        said = self.sayings / f'{len(self.done):04d}'
        self.done.append(line)
        with open(said, 'wb') as f:
            seed = int(self.rng.integers(2**31))
            p = copying().Process(target=be, args=(self.place, f.fileno(), room, self.ledger, line, seed))
            p.start()
        return p, said

    def any_command(self):
        k = self.rng.integers(4)
        if self.rng.random() < 0.3:
            return f'label a{k}'
        return str(self.rng.choice(COMMANDS)).format(k=k)

    def round(self):
        "One command, two, or the same one twice; each whole, killed, or without room."
        first = self.any_command()
        lines = [[first], [first, first], [first, self.any_command()]][self.rng.integers(3)]
        kill, room, full = self.rng.random() < 0.5, self.rng.random() < 0.25, self.rng.random() < 0.25
        if full and self.disk:
            self.disk.leave(int(self.rng.choice([0, 5_000, 100_000, 1_000_000])))
            self.full += 1
        runs = [self.start(o, int(self.rng.choice([0, 200, 5_000, 100_000])) if room else 0) for o in lines]
        if kill:
            time.sleep(self.rng.exponential(1.0))
        for p, _ in runs if kill else ():
            with suppress(ProcessLookupError):
                os.killpg(p.pid, signal.SIGKILL)
        for p, said in runs:
            p.join(300)
            text = said.read_text(errors='replace')
            assert p.exitcode in ((0, 1, -signal.SIGKILL) if kill else (0, 1)), (p.exitcode, lines, text)
            assert 'Traceback' not in text, (lines, text)
        if full and self.disk:
            self.disk.leave(1 << 30)

    def to_the_end(self):
        "Every command once more, without disturbance: it ends, or it had ended."
        said_before = 'existing file or folder', 'an existing split', 'a finished dataset', 'a work list'
        for line in COMMANDS:
            for k in range(4 if '{k}' in line else 1):
                p, said = self.start(line.format(k=k))
                p.join()
                text = said.read_text(errors='replace')
                assert p.exitcode == 0 or any(o in text for o in said_before), (line, k, text)


def left(folder):
    return {f.relative_to(folder) for f in folder.rglob('*')}


def same_tables(a, b):
    "The pictures and tables of two detections."
    for f in sorted([*a.rglob('*.png'), *a.rglob('*.csv')]):
        assert f.name == 'manifest.csv' or f.read_bytes() == (b / f.relative_to(a)).read_bytes(), f


@pytest.fixture
def disk(tmp_path):
    "A disk for the experiment; None where none can be mounted: then only files are bounded."
    with ExitStack() as stack:
        try:
            yield stack.enter_context(Disk(tmp_path / 'experiment'))
        except pytest.skip.Exception:
            yield None


def test_chaos(class_folders, tmp_path, disk):
    pytest.importorskip('resource')
    seed = int(os.environ.get('IPB_CHAOS_SEED', time.time_ns() % 10**6))
    print(f'IPB_CHAOS_SEED={seed}')  # (shown where the test fails)
    chaos = Chaos(tmp_path, class_folders, seed, disk)
    first, end = len(chaos.done), time.monotonic() + float(os.environ.get('IPB_CHAOS_SECONDS', 300))
    while time.monotonic() < end:
        chaos.round()
    place, commands = chaos.place, len(chaos.done) - first
    chaos.to_the_end()

    ds = ColonyDataset(place / 'cells')  # every verdict that was accepted
    noted = {tuple(line.split(',', 1)) for line in chaos.noted.read_text().splitlines()}
    a = ds.annotations()
    given = {(by, i): c for by, i, c in zip(a.annotator, a.colony_id, a.vote)}
    lost = [o for o in noted if given.get(o) != verdict_of(*o, ds.classes)]
    assert not lost, (len(lost), lost[:5])

    assert not ds.bad_files() and not verify_pictures(ds.path)  # counts add up
    assert len(ds) == sum(o['colonies'] for o in ds.info['imports']) == 24 + 8 + 4 * 10
    for k in range(4):
        assert Split(ds, f's{k}').folds == 2 and run_state(place / f'run{k}') == 'done'
    same_tables(place / 'through', place / 'found')

    for f in place.rglob('*.csv'):  # every table opens
        pd.read_csv(f)
    for f in place.rglob('*.json'):
        json.loads(f.read_text(encoding='utf-8'))
    names = {o.parts[0] for o in left(place)} - {'.student0.lock'}
    numbered = {f'{name}{k}' for name in ('sim', 'run', 'student') for k in range(4)}
    once = {'answers', 'cells', 'classes', 'exp', 'first', 'fixed', 'found', 'more', 'through', 'whole'}
    assert names == numbered | once, names ^ (numbered | once)  # nothing lies outside
    assert {o.parts[0] for o in left(tmp_path)} == {'experiment', 'ledger', 'said'}
    assert not [o for o in left(place) if '.partial' in o.name]
    print(f'{commands} commands, {chaos.full} times on a full disk, {len(noted)} verdicts')
