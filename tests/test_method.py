"A method from another package: it trains, sweeps and has its row in the report like those of this one."

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json
from ipb_nb.experiment import train
from ipb_nb.method import METHODS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
METHOD = '''\
from ipb_nb.method import Method, MaskedCrossEntropy, register


@register('smoothed', 'Supervised, smoothed labels')
class SmoothedMethod(Method):
    "Supervised training with smoothed labels."

    uses_unlabeled = False

    def loss(self, training):
        return MaskedCrossEntropy(label_smoothing=0.1)
'''
GRID = '''\
defaults: {pretrain_epochs: 2, epochs: 2, steps: 8, batch_size: 8, scales: '32', finetune: 0, ema: 0, threads: 1}
rows:
  smoothed: {method: smoothed}
'''


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    "A folder with an installed package that announces one method."
    site = tmp_path_factory.mktemp('site')
    (site / 'outside.py').write_text(METHOD)
    info = site / 'outside-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text('[ipb_nb.methods]\nsmoothed = outside:SmoothedMethod\n')
    return site


def test_a_method_from_outside(package, dataset, tmp_path):
    (tmp_path / 'grid.yaml').write_text(GRID)

    def command(*args):
        env = os.environ | {'PYTHONPATH': str(package)}
        said = subprocess.run([BIN / args[0], *map(str, args[1:])], env=env, capture_output=True, text=True)
        assert said.returncode == 0, said.stdout + said.stderr

    command('ipb-sweep', tmp_path / 'grid.yaml', '--data', dataset, '--out', tmp_path / 'runs')
    plain = ExperimentConfig(**yaml.safe_load(GRID)['defaults'] | dict(method='supervised'))
    train(plain, dataset, tmp_path / 'runs' / 'supervised')
    run = read_json(tmp_path / 'runs' / 'smoothed' / 'run.json')
    assert (run['state'], run['name']) == ('done', 'Supervised, smoothed labels')
    one, other = (pd.read_csv(tmp_path / 'runs' / row / 'history.csv') for row in ('supervised', 'smoothed'))
    assert len(one) == len(other) and not one.train_loss.equals(other.train_loss)
    command('ipb-report', tmp_path / 'runs')
    tables = [pd.read_csv(f, dtype=str) for f in (tmp_path / 'runs' / 'report').glob('table_2*.csv')]
    assert any('smoothed' in table.to_string() for table in tables)


def test_an_unknown_method_is_an_error():
    assert 'smoothed' not in METHODS and {'mpl', 'supervised', 'simclr', 'forest'} <= set(METHODS)
    with pytest.raises(InputError, match='method: found smoothed; expected clustering or .* or supervised'):
        METHODS['smoothed']


def test_every_method_of_ours_is_announced():
    "One that is registered but not announced is found only where its module happens to be imported."
    announced = {point.name for point in entry_points(group='ipb_nb.methods') if point.value.startswith('ipb_nb.')}
    for f in (ROOT / 'ipb_nb').glob('*.py'):
        if '@register(' in (text := f.read_text()):
            assert set(re.findall(r"^@register\('(\w+)'", text, re.M)) <= announced, f.name


def test_mlflow_shows_what_the_run_folder_holds(dataset, tiny, tmp_path, monkeypatch, capfd):
    from mlflow import MlflowClient

    store = f'sqlite:///{tmp_path / "mlflow.db"}'
    monkeypatch.setenv('MLFLOW_TRACKING_URI', store)
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'colonies')
    run = train(ExperimentConfig(**tiny), dataset, tmp_path / 'run')
    client = MlflowClient(store)
    (logged,) = client.search_runs([client.get_experiment_by_name('colonies').experiment_id])
    assert logged.info.status == 'FINISHED' and logged.data.params['method'] == 'mpl'
    history, scores = pd.read_csv(run / 'history.csv'), read_json(run / 'metrics.json')['student']
    losses = [m.value for m in client.get_metric_history(logged.info.run_id, 'train_loss')]
    assert np.allclose(losses, history.train_loss)
    assert logged.data.metrics['test_macro_tpr'] == pytest.approx(scores['macro_tpr'])
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'nonsense://nowhere')
    run = train(ExperimentConfig(**tiny), dataset, tmp_path / 'second')
    assert read_json(run / 'run.json')['state'] == 'done'
    assert capfd.readouterr().err.count('The run goes on without it') == 1
