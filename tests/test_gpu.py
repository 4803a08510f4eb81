"The measurements for a GPU, rehearsed without one."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parent.parent / 'benchmarks' / 'gpu.py'
FIGURES = dict(
    agree='agree.patches agree.views agree.logits agree.labels agree.macro_tpr agree.repeats agree.resumes',
    step='step.4 step.4.over_passes step.4.speedup step.4.save_memory step.4.paper_20000',
    memory='memory.8 memory.16 memory.largest',
    frames='predict.frames',
    learn='paper.supervised.macro_tpr paper.ipb.macro_tpr paper.fixmatch.macro_tpr',
    graphs='graphs.eager graphs.compile.speedup graphs.cuda_graphs.speedup',
)


def figures(said):
    return {o['figure'][4:]: o['value'] for o in map(json.loads, filter(lambda o: o[:1] == '{', said.splitlines()))}


def rehearse(tmp_path, *options):
    command = [sys.executable, GPU, '--rehearse', '--folder', tmp_path, *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))


def test_a_part_in_a_process_of_its_own(tmp_path):
    said = rehearse(tmp_path, '--only', 'loader')
    assert not said.returncode, said.stderr
    found = figures(said.stdout)
    assert all(found[f'loader.8.{name}'] > 0 for name in ('network', 'cut', 'moved', 'views', 'shown'))
    assert abs(found['loader.8.over_network'] / (found['loader.8.shown'] / found['loader.8.network']) - 1) < 1e-3


def test_what_does_not_fit_is_named(tmp_path):
    said = rehearse(tmp_path, '--only', 'learn', '--minutes', '1')
    assert 'learn: left out' in said.stdout and '{' not in said.stdout and not any(tmp_path.iterdir())


@pytest.fixture(scope='module')
def gpu():
    sys.path.insert(0, str(GPU.parent))
    import gpu

    yield gpu
    sys.path.remove(str(GPU.parent))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "For all parts: the colonies are simulated once."
    return tmp_path_factory.mktemp('gpu')


@pytest.mark.parametrize('name', FIGURES)
def test_every_other_part_measures(gpu, name, folder, monkeypatch, capsys):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert {*FIGURES, 'loader'} == set(gpu.PARTS)
    gpu.PARTS[name][0](gpu.Part(folder, tiny=True))
    found = figures(capsys.readouterr().out)
    assert set(FIGURES[name].split()) <= set(found)
    if name == 'agree':  # (a CPU agrees with itself)
        assert [found[f'agree.{what}'] for what in ('logits', 'macro_tpr')] == [0, 0]
        assert all(found[f'agree.{what}'] == 1 for what in ('patches', 'labels', 'repeats', 'resumes'))
