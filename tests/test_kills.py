"Every command that writes, killed at ten random moments: the same command again ends with the same files, dates aside."

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import psutil
import pytest
import yaml

from ipb_nb.config import ExperimentConfig
from ipb_nb.experiment import train
from ipb_nb.importers import import_folders
from ipb_nb.simulate import simulate_experiment

pytestmark = pytest.mark.long
BIN = Path(sys.executable).parent
TINY = dict(pretrain_epochs=1, epochs=3, steps=12, batch_size=8, scales='32', threshold=0.34, finetune=1, threads=1)
FIELDS = [str(o) for k, v in TINY.items() for o in (f'--{k}', v)]
COMMANDS = {
    'new': 'new project',
    'simulate': 'simulate exp --preset tiny --wells 2 --frames 3 --size 480 --crops cells',
    'simulate --colonies': 'simulate cells --colonies 30 --annotators 2',
    'detect': 'detect {given}/exp/raw cells --truth {given}/exp/truth --contact_sheet --resume',
    'import': 'import {given}/classes cells',
    'add': 'import {given}/classes cells --classes fine,middle,coarse --add',
    'split': 'split cells --name one --labeled 0.5 --test 0.2 --folds 2',
    'train': 'train {given}/cells --no_notebook --resume ' + ' '.join(FIELDS),
    'train in a notebook': 'train {given}/cells --resume ' + ' '.join(FIELDS),
    'sweep': 'sweep {given}/grid.yaml --data {given}/cells --out runs',
    'predict': 'predict {given}/runs/a {given}/exp/raw --out out --conditions {given}/exp/wells.csv --unscaled'
    ' --resume',
    'export': 'export {given}/runs/a --format onnx',
    'report': 'report runs',
    'annotate': 'annotate cells --assign_to ana,ben --n 60',
}
FROM = dict(add='fine', split='cells', annotate='cells', report='runs')  # what there is before, from `given`


@pytest.fixture(scope='module')
def given(class_folders, tmp_path_factory):
    "A small experiment, two datasets, two runs and a grid."
    folder = tmp_path_factory.mktemp('given')
    shutil.copytree(class_folders, folder / 'classes')
    shutil.copytree(class_folders / 'fine', folder / 'fine only' / 'fine')
    simulate_experiment(folder / 'exp', 'tiny', wells=2, frames=3, size=480)
    import_folders(folder / 'fine only', folder / 'fine')
    ds = import_folders(folder / 'classes', folder / 'cells')
    subprocess.run([BIN / 'ipb-split', ds.path, '--labeled', '0.25', '--test', '0.25', '--folds', '2'], check=True)
    rows = dict(a=dict(method='supervised'), b={})
    for name, own in rows.items():
        train(ExperimentConfig(**TINY | own), ds.path, folder / 'runs' / name)
    (folder / 'grid.yaml').write_text(yaml.safe_dump(dict(defaults=TINY, rows=rows)))
    return folder


UNLIKE = 'started seconds cpu_seconds load estimate resumed files flops'.split()


def without_times(o):
    "An object of a JSON file without what differs from run to run."
    if isinstance(o, dict):
        return {k: without_times(v) for k, v in o.items() if k not in UNLIKE}
    return [without_times(v) for v in o] if isinstance(o, list) else o


def content(f, place):
    "The bytes of a file, without dates, seconds and the folder that it lies in."
    if f.suffix == '.zip':
        with ZipFile(f) as z:
            return {name: z.read(name) for name in z.namelist()}
    said = f.read_bytes().replace(str(place).encode(), b'')
    if f.suffix == '.safetensors':  # (what it says of itself comes in any order)
        start = 8 + int.from_bytes(said[:8], 'little')
        return json.loads(said[8:start]), said[start:]
    if f.suffix == '.json':
        said = json.dumps(without_times(json.loads(said))).encode()
    if f.suffix == '.csv':
        rows = [row.split(b',') for row in said.splitlines()]
        seconds = [k for k, c in enumerate(rows[0]) if c in (b'seconds', b'mtime_ns')] if rows else []
        said = b'\n'.join(b','.join(c for k, c in enumerate(row) if k not in seconds) for row in rows)
    return re.sub(rb'20\d\d-?\d\d-?\d\d[T ]?[\d:.+]*', b'', said)


def below(place):
    "What a command left in a folder. (Logs and the outputs of notebooks tell of the stop; a lock holds nothing.)"
    files = [f for f in place.rglob('*') if f.is_file() and not f.name.endswith(('.lock', '.ipynb'))]
    files = [f for f in files if f.parent.name != '.logs']
    return {f.relative_to(place).as_posix(): content(f, place) for f in files}


class Trial:
    "A command in folders of its own."

    def __init__(self, name, given, folder):
        self.args = [o.format(given=os.path.relpath(given, folder / 'x')) for o in COMMANDS[name].split()]
        self.before, self.folder, self.places = given / FROM[name] if name in FROM else None, folder, 0

    def place(self):
        "A new folder with what the command needs."
        self.places += 1
        place = self.folder / f'{self.places:03d}'
        place.mkdir()
        if self.before:
            shutil.copytree(self.before, place / ('runs' if self.before.name == 'runs' else 'cells'))
        return place

    def start(self, place):
        args = [BIN / f'ipb-{self.args[0]}', *self.args[1:]]
        with open(self.folder / 'said', 'wb') as said:
            return subprocess.Popen(args, cwd=place, stdout=said, stderr=said, start_new_session=True)

    def run(self, place):
        "To its end; what it said where it failed."
        return '' if self.start(place).wait() == 0 else (self.folder / 'said').read_text(errors='replace')

    def kill(self, place, after):
        "Kill the command and its processes after some seconds; True if it had ended before."
        p = self.start(place)
        with suppress(subprocess.TimeoutExpired):
            assert p.wait(after) == 0, (self.folder / 'said').read_text(errors='replace')
            return True
        family = psutil.Process(p.pid).children(recursive=True)  # (a kernel has a session of its own)
        with suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, 10)
        p.wait()
        return False


@pytest.mark.parametrize('name', COMMANDS)
def test_ten_kills_at_random_moments(name, given, tmp_path):
    trial, rng = Trial(name, given, tmp_path), np.random.default_rng(0)
    assert not trial.run(alone := trial.place())  # (the first one imports)
    shutil.rmtree(alone)
    start = time.monotonic()
    assert not trial.run(alone := trial.place())
    took, whole, kills, moments = time.monotonic() - start, below(alone), 0, []
    while kills < 10 and trial.places < 40:
        place, done = trial.place(), False
        while kills < 10 and not done:
            moments.append(round(rng.uniform(0, 1) * took, 2))
            done = trial.kill(place, moments[-1]) or below(place) == whole
            kills += not done
        assert done or not (said := trial.run(place)), said
        found = below(place)
        differs = sorted(f for f in {*found, *whole} if found.get(f) != whole.get(f))
        assert not differs, f'{differs} after the moments {moments} of {took:.1f} s'
        shutil.rmtree(place)
    print(f'{name}: {kills} kills within {took:.1f} s, {trial.places - 2} times to the end')
    assert kills == 10
