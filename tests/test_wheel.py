"""The built wheel in an environment of its own.

Every command runs from there, with the notebooks and grids that it carries."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from configparser import ConfigParser
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


def call(*args, cwd, ok=True):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'JUPYTER_PATH')}
    r = subprocess.run(list(map(str, args)), capture_output=True, text=True, cwd=cwd, env=env)
    assert (r.returncode == 0) == ok, r.stdout + r.stderr
    return r.stdout + r.stderr


@pytest.fixture(scope='module')
def installed(once):
    "An empty environment with the wheel in it; the packages that it needs are those of this one."
    return once('wheel', install) / 'env' / 'bin'


def dockerfile_copies():
    "Sources and destination of each COPY: the wheel is made of these, in a container and here."
    return [line.split()[1:] for line in (ROOT / 'Dockerfile').read_text().splitlines() if line.startswith('COPY ')]


def install(d):
    for *sources, to in dockerfile_copies():
        for f in sources:
            own = ROOT / f
            at = d / to.lstrip('/') / ('' if own.is_dir() else own.name)
            at.parent.mkdir(parents=True, exist_ok=True)
            ignored = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
            shutil.copytree(own, at, ignore=ignored) if own.is_dir() else shutil.copy(own, at)
    offline = ('--no-deps', '--no-index')
    call(sys.executable, '-m', 'pip', 'wheel', *offline, '--no-build-isolation', '-w', d, d / 'src', cwd=d)
    venv.create(d / 'env', with_pip=False)
    site = d / 'env' / 'lib' / f'python{sys.version_info.major}.{sys.version_info.minor}' / 'site-packages'
    # (the borrowed packages' own .pth files, the editable install's too, are not read)
    (site / 'borrowed.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    python = d / 'env' / 'bin' / 'python'
    call(python, '-m', 'pip', 'install', *offline, '--ignore-installed', next(d.glob('*.whl')), cwd=d)
    found = call(python, '-c', 'import ipb_nb; print(ipb_nb.__file__)', cwd=d).strip()
    assert found == str(site / 'ipb_nb' / '__init__.py')
    shutil.rmtree(d / 'src')


def commands():
    ini = ConfigParser()
    ini.read(ROOT / 'settings.ini')
    return [line.split('=')[0] for line in ini['DEFAULT']['console_scripts'].split() if '=' in line]


def test_every_command_is_there(installed, tmp_path):
    assert {f.name for f in installed.glob('ipb*')} == set(commands())
    with ThreadPool(2) as pool:
        said = pool.map(lambda c: call(installed / c, '--help', cwd=tmp_path), commands())
    for c, text in zip(commands(), said):
        assert f'usage: {c}' in text
    assert 'ipb_nb' in call(installed / 'ipb', '--version', cwd=tmp_path)
    assert (
        call(installed / 'python', '-m', 'ipb_nb', 'split', '--help', cwd=tmp_path)
        == said[commands().index('ipb-split')]
    )
    assert 'extra app' in call(installed / 'ipb', 'doctor', cwd=tmp_path)
    # the help is stored text, so this shows that every command can be imported
    names = 'from ipb_nb.commands import COMMANDS, find_command; print(*[find_command(c).__name__ for c in COMMANDS])'
    functions = [c.replace('-', '_') for c in commands() if c != 'ipb']
    assert call(installed / 'python', '-c', names, cwd=tmp_path).split() == functions


def test_from_folders_to_report(installed, class_folders, tiny, tmp_path):
    data, run = tmp_path / 'colonies', tmp_path / 'run'

    def sh(name, *args):
        return call(installed / name, *args, cwd=tmp_path)

    assert '86 colonies' in sh('ipb-import', class_folders, data)
    assert (data / 'colonies.csv').exists()
    assert 'nothing' not in sh('ipb-import', class_folders, data, '--add')
    assert len(pd.read_csv(data / 'colonies.csv')) == 86
    assert 'imported' in sh('ipb-dataset', data) and (data / 'summary.png').stat().st_size > 1e4
    said = sh('ipb-split', data, '--labeled', 0.25, '--test', 0.25, '--folds', 4)
    assert '4 folds' in said and '(V) is empty in fold 0, 1, 2, 3: it takes 5 colonies of every class' in said
    options = [o for k, v in tiny.items() for o in (f'--{k}', v)]
    said = sh('ipb-train', data, '--out', run, '--fold', 3, *options)  # through the notebook in the wheel
    assert 'student' in said and 'macro recall' in said
    tables = {'run.json', 'history.csv', 'balance.csv', 'predictions.csv', 'metrics.json', 'model.json', 'train.ipynb'}
    weights = {f'{name}.safetensors' for name in ('features', 'student', 'teacher', 'reference')}
    assert {f.name for f in run.iterdir()} == tables | weights
    info = json.loads((run / 'run.json').read_text())
    assert (info['state'], info['config']['fold'], info['data']) == ('done', 3, '../colonies')
    nb = json.loads((run / 'train.ipynb').read_text())
    assert any('image/png' in o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', []))
    assert 'report.html' in sh('ipb-report', run)
    page = (run / 'report.html').read_text()
    assert 'src="data:image/' in page and '://' not in page


@pytest.mark.long  # (nbs/70_demo runs the same from the sources)
def test_demo_makes_a_report(installed, tmp_path, tiny):
    (tmp_path / 'rows.yaml').write_text(f'defaults: {json.dumps(tiny)}\nrows:\n  ipb: {{}}\n')
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / 'mine.txt').write_text('stays')
    said = call(installed / 'ipb-demo', '--dest', 'demo', '--colonies', 80, '--config', 'rows.yaml', cwd=tmp_path)
    assert 'report.html' in said and (tmp_path / 'demo' / 'ipb' / 'train.ipynb').exists()
    assert (tmp_path / 'demo' / 'mine.txt').read_text() == 'stays'


def test_grids_and_notebooks_are_inside(installed, tmp_path):
    code = (
        'from importlib.resources import files\n'
        "folders = [files('ipb_nb') / name for name in ('configs', 'experiments')]\n"
        "print(*sorted(f.name for folder in folders for f in folder.iterdir() if f.suffix in ('.yaml', '.ipynb')))"
    )
    inside = call(installed / 'python', '-c', code, cwd=tmp_path).split()
    assert inside == sorted(
        f.name for d, e in (('configs', 'yaml'), ('nbs/experiments', 'ipynb')) for f in (ROOT / d).glob(f'*.{e}')
    )
    assert 'ipb' in call(
        installed / 'python',
        '-c',
        'from ipb_nb.demo import DEMO_CONFIG; from ipb_nb.sweep import read_grid; print(list(read_grid(DEMO_CONFIG)))',
        cwd=tmp_path,
    )
