"The repository: notebooks stored as they ran, and a set-up that says in one line what stops it."

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_as_it_ran(path):
    code = [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in code for o in c['outputs']]
    source, said = '\n'.join(''.join(c['source']) for c in code), json.dumps(outputs)
    assert not any(o['output_type'] == 'error' for o in outputs)
    assert outputs
    assert path.stat().st_size < 1e6
    assert not re.search(r'(?<![\w.])/(work|tmp|root|home)/', source + said)


def set_up(tmp_path, **env):
    "Call the set-up in a copy; it must fail with one line."
    for f in ('.ci/setup', 'settings.ini', 'setup.py', 'constraints.txt', 'README.md'):
        (tmp_path / f).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / f, tmp_path / f)
    r = subprocess.run(
        [tmp_path / '.ci' / 'setup'],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHON': sys.executable} | env,
        cwd=tmp_path,
    )
    assert r.returncode == 1 and not (tmp_path / '.venv' / '.stamp').exists()
    assert len(r.stderr.strip().splitlines()) == 1
    return r.stderr


def test_no_usable_python(tmp_path):
    assert 'is not a usable Python 3.11 or 3.12' in set_up(tmp_path, PYTHON='/bin/false')


def test_too_little_disk(tmp_path):
    assert 'make room and try again' in set_up(tmp_path, IPB_NEED_GB='999999')


def test_no_network(tmp_path):
    nowhere = dict(
        PIP_INDEX_URL='http://127.0.0.1:9/simple',
        PIP_EXTRA_INDEX_URL='',
        PIP_FIND_LINKS='',
        PIP_RETRIES='1',
        PIP_CONFIG_FILE='/dev/null',
        IPB_NEED_GB='0',
    )
    assert 'the package registry cannot be reached' in set_up(tmp_path, **nowhere)
