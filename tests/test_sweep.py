"""Sweeps: killed runners, kernels and workers, two runners on one folder, rows that fail.

The same command again must end with the same results."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json
from ipb_nb.experiment import run_state, train
from ipb_nb.sweep import plan_runs, read_grid, state_of, sweep

resource = pytest.importorskip('resource')  # (limits of a process, which Windows lacks)

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parent.parent
GRID = """\
defaults:
  pretrain_epochs: 2
  epochs: 4
  steps: 24
  batch_size: 8
  scales: 32
  threshold: 0.34
  finetune: 1
  ema: 0
  threads: 1
axes: {fold: [0, 1]}
rows:
  ipb: {}
  supervised: {method: supervised}
"""


@pytest.fixture(scope='module')
def grid(tmp_path_factory):
    f = tmp_path_factory.mktemp('grid') / 'grid.yaml'
    f.write_text(GRID)
    return f


@pytest.fixture(scope='module')
def undisturbed(grid, dataset, tmp_path_factory):
    "The results of all runs, trained one after the other in this process."
    out = tmp_path_factory.mktemp('sweep') / 'runs'
    for name, cfg in plan_runs(grid, out, 1).items():
        train(cfg, dataset, out / name)
    assert sweep(grid, dataset, out).state.eq('done').all()
    return results(out)


def results(out):
    return pd.read_csv(out / 'results.csv').drop(columns='seconds')


def command(grid, dataset, out, *more):
    return [str(o) for o in (BIN / 'ipb-sweep', grid, '--data', dataset, '--out', out, '--workers', 2, *more)]


def start(*args):
    return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(f, seconds=600):
    end = time.monotonic() + seconds
    while not f():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def epochs(out):
    return sum(len(f.read_text().splitlines()) - 1 for f in out.glob('*/history.csv'))


def kernels(p):
    "The processes below that lead a session of their own, as kernels do."
    return [c for c in psutil.Process(p.pid).children(recursive=True) if os.getsid(c.pid) == c.pid]


def test_the_grids_that_ship(dataset, tmp_path):
    "The ten rows of the paper and five controls; the two that need fields of their own are trained, small."
    paper = read_grid(ROOT / 'configs' / 'ablation.yaml')
    rows = {n.removesuffix('-fold0'): c for n, c in paper.items() if c.fold == 0}
    assert (
        len(paper) == 150
        and len({c.steps for c in rows.values()}) == 1
        and {n: c.scales for n, c in rows.items() if c.scales == '224,224'} == {'ML-IPB-HRNet-224+224': '224,224'}
    )
    assert [n for n, c in rows.items() if c.feedback == 'none'] == ['h0-HRNet'] and len(
        read_grid(ROOT / 'configs' / 'quick.yaml')
    ) == 8
    by_epochs = read_grid(ROOT / 'configs' / 'ablation.yaml', dict(steps=0))
    assert {(c.steps, c.epochs) for c in by_epochs.values()} == {(0, 200)}
    small = yaml.safe_load(GRID)['defaults']
    for name, own in (('equal', dict(scales='32,32')), ('h0', dict(feedback='none'))):
        out = train(ExperimentConfig(**small | own), dataset, tmp_path / name)
        h = pd.read_csv(out / 'history.csv').query('stage == "student"').h
        assert run_state(out) == 'done' and h.eq(0).all() == (name == 'h0')


@pytest.mark.parametrize(
    'text, says',
    [
        ('rows: {a: {lr: 1e-2}}', 'line 1, row a: lr: found .1e-2.; expected a number'),
        ('rows:\n  a: {}\n  a: {}', 'line 3: found a a second time'),
        ('rows:\n  a: {step: 3}', 'line 2: found field step'),
        ('axes:\n  fold: []\nrows: {a: {}}', r'line 2: found fold: \[\]; expected a list'),
        ('defaults: {steps: 3}', 'found no rows'),
        ('rows: {a: [}', 'line 1: found .*; expected YAML'),
        ('row: {a: {}}\nrows: {b: {}}', 'line 1: found row; expected defaults'),
        ('axes: {lr: [0.1, -1]}\nrows:\n  a: {}', 'line 1, row a: lr: found -1'),
    ],
)
def test_a_wrong_grid_is_reported_with_its_line(tmp_path, text, says):
    f = tmp_path / 'odd.yaml'
    f.write_text(text)
    with pytest.raises(InputError, match='odd.yaml,? ?' + says if 'line' in says else says):
        read_grid(f)


def test_a_killed_runner(grid, dataset, undisturbed, tmp_path):
    out = tmp_path / 'runs'
    p = start(grid, dataset, out, '--only', '*-fold0')
    wait_for(lambda: epochs(out) >= 1)
    below = psutil.Process(p.pid).children(recursive=True)
    p.terminate()  # (asked to end, it ends what it has started)
    assert p.wait() == 1 and below and not psutil.wait_procs(below, 60)[1]
    p = start(grid, dataset, out, '--only', '*-fold0')
    wait_for(lambda: epochs(out) >= 4)
    p.kill()
    p.wait()
    assert sweep(grid, dataset, out, only='*-fold0', workers=2).state.eq('done').all()
    expected = undisturbed[undisturbed.run.str.endswith('fold0')].reset_index(drop=True)
    pd.testing.assert_frame_equal(results(out), expected)


@pytest.mark.long
def test_a_killed_kernel(grid, dataset, undisturbed, tmp_path):
    out = tmp_path / 'runs'
    p = start(grid, dataset, out)
    wait_for(lambda: epochs(out) >= 3)
    for k in kernels(p)[:1]:
        k.kill()
    said, _ = p.communicate()
    assert p.returncode == 0, said  # (begun again by the same runner)
    pd.testing.assert_frame_equal(results(out), undisturbed)


@pytest.mark.long
def test_two_runners(grid, dataset, undisturbed, tmp_path):
    out = tmp_path / 'runs'
    ps = [start(grid, dataset, out) for _ in range(2)]
    said = [p.communicate()[0] for p in ps]
    assert [p.returncode for p in ps] == [0, 0], said
    pd.testing.assert_frame_equal(results(out), undisturbed)
    assert all(read_json(f)['resumed'] == [] for f in out.glob('*/run.json')) and not (out / '.damaged').exists()


def test_what_fails_does_not_stop_the_rest(grid, dataset, tmp_path):
    bad, out = tmp_path / 'bad.yaml', tmp_path / 'runs'
    rows = '  blown: {lr: 2.0e+9, warmup: 0.0, fold: 0}\n  supervised: {method: supervised, fold: 0}\n'
    bad.write_text(GRID.partition('  ipb:')[0] + rows)
    r = subprocess.run(command(bad, dataset, out), capture_output=True, text=True)
    assert r.returncode == 1 and 'Traceback' not in r.stderr
    assert '1 of 2 runs not done (blown); expected all done' in r.stderr
    assert {n: state_of(out / n)[0] for n in read_grid(bad)} == {'blown': 'failed', 'supervised': 'done'}
    assert 'a loss that is' in state_of(out / 'blown')[1]
    assert (out / 'blown' / 'train.ipynb').exists()
    before = (out / 'blown' / 'run.json').read_text()
    assert sweep(bad, dataset, out).state['blown'] == 'failed' and (out / 'blown' / 'run.json').read_text() == before
    sweep(bad, dataset, out, retry_failed=True)
    assert (out / 'blown' / 'run.json').read_text() != before


@pytest.mark.long
def test_on_dask(grid, dataset, undisturbed, tmp_path):
    out = tmp_path / 'runs'
    assert sweep(grid, dataset, out, workers=2, dask='local').state.eq('done').all()
    pd.testing.assert_frame_equal(results(out), undisturbed)


@pytest.mark.long
def test_a_killed_dask_worker(grid, dataset, undisturbed, tmp_path):
    from dask.distributed import LocalCluster

    out = tmp_path / 'runs'
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        p = start(grid, dataset, out, '--dask', cluster.scheduler_address)
        wait_for(lambda: epochs(out) >= 3)
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        said, _ = p.communicate()
    assert p.returncode == 0, said
    pd.testing.assert_frame_equal(results(out), undisturbed)


@pytest.mark.long
def test_a_full_disk(grid, dataset, undisturbed, tmp_path):
    out = tmp_path / 'runs'
    r = subprocess.run(
        command(grid, dataset, out, '--only', 'ipb-fold1'),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)),
    )
    assert (
        r.returncode == 1
        and '1 of 1 runs not done' in r.stderr
        and 'Traceback' not in r.stderr
        and 'Make room and go on' in r.stdout
    )
    assert {state_of(f.parent)[0] for f in out.glob('*/run.json')} == {'stopped'}
    assert sweep(grid, dataset, out, only='ipb-fold1').state.eq('done').all()
    assert read_json(out / 'sweep.json')['format_version'] == 1
    assert read_json(out / 'sweep.json')['asked'] == [
        'ipb-fold1'
    ]  # the others were not asked for, so a report doesn't miss them
    pd.testing.assert_frame_equal(results(out), undisturbed[undisturbed.run.eq('ipb-fold1')].reset_index(drop=True))


@pytest.mark.long
def test_on_slurm(grid, dataset, undisturbed, tmp_path):
    "Two jobs, by an sbatch that runs them here."
    out, queue = tmp_path / 'runs', tmp_path / 'bin'
    queue.mkdir()
    for name, text in dict(
        sbatch='bash "$1" > /dev/null 2>&1 & echo Submitted batch job $!', scancel='kill "$@"'
    ).items():
        (queue / name).write_text(f'#!/bin/bash\n{text}\n')
        (queue / name).chmod(0o755)
    asked = dict(
        PATH=f"{queue}:{os.environ['PATH']}", DASK_JOBQUEUE__SLURM__CORES='2', DASK_JOBQUEUE__SLURM__MEMORY='4GB'
    )
    r = subprocess.run(
        command(grid, dataset, out, '--dask', 'slurm'), capture_output=True, text=True, env=os.environ | asked
    )
    assert r.returncode == 0, r.stderr
    pd.testing.assert_frame_equal(results(out), undisturbed)
