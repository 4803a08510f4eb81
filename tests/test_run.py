"Reading runs: every kind of damage is named with its file."

import shutil
from pathlib import Path

import numpy as np
import pytest

from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.run import find_runs, oracle_run, read_run


@pytest.fixture(scope='module')
def whole(dataset, tmp_path_factory):
    config = dict(preset='quick', arch='test_resnet', scales='64', method='mpl', balance=True, fold=0)
    return oracle_run(tmp_path_factory.mktemp('oracle') / 'ipb', ColonyDataset(dataset), 'IPB', config)


@pytest.fixture
def broken(whole, tmp_path):
    "A copy of the run with one file replaced, known to run.json or not."

    def make(file, text, files=None):
        shutil.copytree(whole, tmp_path / 'broken')
        (tmp_path / 'broken' / file).write_text(text)
        if file != 'run.json':
            write_json(read_json(whole / 'run.json') | dict(files=files or {}), tmp_path / 'broken' / 'run.json')
        return tmp_path / 'broken'

    return make


@pytest.mark.parametrize(
    'file, text, files, says',
    [
        ('history.csv', 'stage', {'history.csv': 9}, 'history.csv: found a damaged file; expected 9 bytes'),
        ('history.csv', '', {'teacher.safetensors': 9}, 'teacher.safetensors: found no such file'),
        ('metrics.json', '{"student": {"macro', None, 'metrics.json: found text that is not JSON'),
    ],
)
def test_damage_is_found_on_reading(broken, file, text, files, says):
    with pytest.raises(InputError, match=says):
        read_run(broken(file, text, files))


@pytest.mark.parametrize(
    'file, text, says',
    [
        ('history.csv', 'stage,epoch,train_loss\n', 'history.csv: found no column valid_loss'),
        ('balance.csv', '', 'balance.csv: found text that is not a table'),
    ],
)
def test_damage_is_found_when_a_table_is_needed(broken, file, text, says):
    run = read_run(broken(file, text))
    with pytest.raises(InputError, match=says):
        getattr(run, file.removesuffix('.csv'))


def test_a_run_that_goes_on(whole, broken):
    with pytest.raises(InputError, match='found a run that is running; expected a finished run. Wait'):
        read_run(broken('run.json', (whole / 'run.json').read_text().replace('"done"', '"running"')))


def test_lost_predictions(whole, broken):
    half = (whole / 'predictions.csv').read_text().splitlines(keepends=True)[:11]
    n = read_run(whole).metrics['n_test']
    run = read_run(broken('predictions.csv', ''.join(half)))
    with pytest.raises(InputError, match=f'predictions.csv: found 10 rows of the student; expected {n}'):
        _ = run.predictions


def test_a_class_may_be_called_na(broken):
    text = 'epoch,class,share,weight,confident,accuracy\n0,NA,.5,1,1,\n'
    one = read_run(broken('balance.csv', text)).balance
    assert one['class'][0] == 'NA' and np.isnan(one.accuracy[0])


def test_runs_are_named_by_their_place(whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'runs' / 'ipb-0')
    assert [r.id for r in find_runs(tmp_path / 'runs' / 'ipb-0')[0]] == ['ipb-0']
    assert [r.id for r in find_runs(tmp_path)[0]] == [str(Path('runs') / 'ipb-0')]
