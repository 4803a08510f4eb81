"Every notebook runs from top to bottom, as `nbdev_test` runs it, in a process of its own."

import subprocess
from pathlib import Path

import pytest

from ahead import BIN

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [f for f in sorted((ROOT / 'nbs').rglob('*.ipynb')) if not f.parent.name.startswith('.')]


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda f: f.stem)
def test_it_runs(notebook):
    said = subprocess.run([BIN / 'nbdev_test', '--path', notebook], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
