"The measurements for a GPU, rehearsed without one."

import json
import os
import subprocess
import sys
from pathlib import Path

GPU = Path(__file__).parent.parent / 'benchmarks' / 'gpu.py'


def rehearse(tmp_path, *options):
    command = [sys.executable, GPU, '--rehearse', '--folder', tmp_path, *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))


def test_parts_print_their_figures(tmp_path):
    said = rehearse(tmp_path, '--only', 'loader')
    assert not said.returncode, said.stderr
    found = {o['figure']: o['value'] for o in map(json.loads, filter(lambda o: o[0] == '{', said.stdout.splitlines()))}
    of_loader = ('network', 'cut', 'moved', 'views', 'shown')
    assert all(found[f'gpu.loader.8.{name}'] > 0 for name in of_loader)
    over = found['gpu.loader.8.shown'] / found['gpu.loader.8.network']
    assert abs(found['gpu.loader.8.over_network'] / over - 1) < 1e-3


def test_what_does_not_fit_is_named(tmp_path):
    said = rehearse(tmp_path, '--only', 'learn', '--minutes', '1')
    assert 'learn: left out' in said.stdout and '{' not in said.stdout and not any(tmp_path.iterdir())
