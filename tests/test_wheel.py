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

import pytest

ROOT = Path(__file__).parent.parent


def call(*args, cwd, ok=True):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'JUPYTER_PATH')}
    r = subprocess.run(list(map(str, args)), capture_output=True, text=True, cwd=cwd, env=env)
    assert (r.returncode == 0) == ok, r.stdout + r.stderr
    return r.stdout + r.stderr


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "An empty environment with the wheel in it; the packages that it needs are those of this one."
    d = tmp_path_factory.mktemp('wheel')
    (d / 'src').mkdir()
    for f in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in', 'constraints.txt'):
        shutil.copy(ROOT / f, d / 'src')
    for folder in ('ipb_nb', 'nbs/experiments', 'configs'):
        ignored = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
        shutil.copytree(ROOT / folder, d / 'src' / folder, ignore=ignored)
    call(
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '--no-index',
        '-w',
        d,
        d / 'src',
        cwd=d,
    )
    venv.create(d / 'env', with_pip=False)
    site = d / 'env' / 'lib' / f'python{sys.version_info.major}.{sys.version_info.minor}' / 'site-packages'
    (site / 'borrowed.pth').write_text(
        sysconfig.get_paths()['purelib'] + '\n'
    )  # its own .pth files, the editable install's too, are not read
    python = d / 'env' / 'bin' / 'python'
    call(python, '-m', 'pip', 'install', '--no-deps', '--no-index', '--ignore-installed', next(d.glob('*.whl')), cwd=d)
    assert call(python, '-c', 'import ipb_nb; print(ipb_nb.__file__)', cwd=d).strip() == str(
        site / 'ipb_nb' / '__init__.py'
    )
    shutil.rmtree(d / 'src')
    return d / 'env' / 'bin'


def commands():
    ini = ConfigParser()
    ini.read(ROOT / 'settings.ini')
    return [line.split('=')[0] for line in ini['DEFAULT']['console_scripts'].split()]


def test_every_command_is_there(installed, tmp_path):
    assert {f.name for f in installed.glob('ipb-*')} == set(commands())
    with ThreadPool(2) as pool:
        said = pool.map(lambda c: call(installed / c, '--help', cwd=tmp_path), commands())
    for c, text in zip(commands(), said):
        assert f'usage: {c}' in text
    # the help is stored text, so this shows that every command can be imported
    names = 'from ipb_nb.commands import COMMANDS, find_command; print(*[find_command(c).__name__ for c in COMMANDS])'
    assert call(installed / 'python', '-c', names, cwd=tmp_path).split() == [c.replace('-', '_') for c in commands()]


def test_from_simulation_to_report(installed, tmp_path, tiny):
    call(installed / 'ipb-simulate', 'sim', '--colonies', 60, cwd=tmp_path)
    call(installed / 'ipb-dataset', 'sim', cwd=tmp_path)
    call(installed / 'ipb-split', 'sim', '--labeled', 0.3, '--test', 0.3, '--folds', 1, cwd=tmp_path)
    call(
        installed / 'ipb-train',
        'sim',
        '--out',
        'run',
        *[o for k, v in tiny.items() for o in (f'--{k}', v)],
        cwd=tmp_path,
    )  # through the notebook in the wheel
    call(installed / 'ipb-report', 'run', cwd=tmp_path)
    assert (tmp_path / 'run' / 'train.ipynb').exists() and (tmp_path / 'run' / 'report.html').exists()
    (tmp_path / 'cells' / 'round').mkdir(parents=True)
    for f in sorted((tmp_path / 'sim' / 'images').iterdir())[:3]:
        shutil.copy(f, tmp_path / 'cells' / 'round')
    assert '3 colonies' in call(installed / 'ipb-import', 'cells', 'own', cwd=tmp_path)


def test_demo_makes_a_report_and_can_be_repeated(installed, tmp_path, tiny):
    (tmp_path / 'rows.yaml').write_text(f'defaults: {json.dumps(tiny)}\nrows:\n  ipb: {{}}\n')
    for _ in range(2):
        said = call(installed / 'ipb-demo', '--dest', 'demo', '--colonies', 80, '--config', 'rows.yaml', cwd=tmp_path)
        assert 'report.html' in said and (tmp_path / 'demo' / 'ipb' / 'train.ipynb').exists()
        (tmp_path / 'demo' / 'mine.txt').write_text('stays')
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
