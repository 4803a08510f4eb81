"The commands, as a user calls them: what they print, what they leave behind, how they fail."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import papermill
import pytest

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError
from ipb_nb.experiment import check_parameters, ipb_train, train, train_in_notebook, train_notebook
from ipb_nb.importers import ipb_import
from ipb_nb.report import ipb_report
from ipb_nb.split import ipb_dataset, ipb_split

COMMANDS = dict(
    ipb_import=ipb_import, ipb_dataset=ipb_dataset, ipb_split=ipb_split, ipb_train=ipb_train, ipb_report=ipb_report
)

BIN = Path(sys.executable).parent


def sh(*args, ok=True, **env):
    "Run a command of ours; its output. Without `ok` it must fail with exit code 1 and one line."
    r = subprocess.run([BIN / args[0], *map(str, args[1:])], capture_output=True, text=True, env=os.environ | env)
    assert r.returncode == (0 if ok else 1), r.stdout + r.stderr
    assert 'Traceback' not in r.stderr
    return r.stdout if ok else r.stderr


def test_an_option_given_twice_is_not_half_lost(dataset, tmp_path):
    said = sh(
        'ipb-sweep',
        'configs/quick.yaml',
        '--data',
        dataset,
        '--out',
        tmp_path / 'runs',
        '--set',
        'steps=0',
        '--set=epochs=1',
        ok=False,
    )
    assert '--set: found it twice; expected every option once' in said and not (tmp_path / 'runs').exists()


def test_notebook_and_library_give_the_same(dataset, run, tiny, tmp_path):
    train_in_notebook(ExperimentConfig(**tiny), dataset, tmp_path / 'nb')
    assert (tmp_path / 'nb' / 'metrics.json').read_text() == (run / 'metrics.json').read_text()
    train(ExperimentConfig(**tiny | {'seed': 1}), dataset, tmp_path / 'other')
    assert (tmp_path / 'other' / 'predictions.csv').read_text() != (run / 'predictions.csv').read_text()


def test_bad_file_is_passed_over_and_reported(class_folders, tmp_path):
    shutil.copytree(class_folders, tmp_path / 'cells')
    (tmp_path / 'cells' / 'fine' / 'broken.png').write_text('no image')
    err = sh('ipb-import', tmp_path / 'cells', tmp_path / 'out', ok=False)
    assert '1 files that could not be read' in err
    assert len(pd.read_csv(tmp_path / 'out' / 'colonies.csv')) == 86
    assert 'broken.png' in (tmp_path / 'out' / 'failures.csv').read_text()


def test_voc_goes_on_past_a_lost_picture(voc, tmp_path):
    err = sh('ipb-import', voc, tmp_path / 'out', ok=False)
    assert '1 files that could not be read' in err
    failures = pd.read_csv(tmp_path / 'out' / 'failures.csv')
    assert failures.kind.tolist() == ['skipped', 'bad file'] and failures.source.tolist() == ['b.xml', 'lost.xml']
    assert pd.read_csv(tmp_path / 'out' / 'colonies.csv').label.tolist() == ['big', 'small', 'big', 'multi-label']


@pytest.mark.parametrize(
    'command, kwargs, says',
    [
        (
            'ipb_import',
            dict(path='{cells}', dest='{tmp}/x', classes='fine,coarse'),
            'found class middle; expected one of fine, coarse',
        ),
        ('ipb_import', dict(path='{tmp}/nothing', dest='{tmp}/x'), 'no such file or folder'),
        ('ipb_import', dict(path='{cells}', dest='{data}'), 'expected a new or empty folder'),
        (
            'ipb_split',
            dict(dataset='{data}', labeled=0.01, name='small'),
            '24 colonies with labels; expected at least 100',
        ),
        ('ipb_split', dict(dataset='{data}', labeled=0.25, test=0.25, folds=2), 'an existing split'),
        ('ipb_split', dict(dataset='{tmp}', name='x'), 'expected a colony dataset'),
        ('ipb_split', dict(dataset='{data}', name='../x'), 'name: found ../x'),
        (
            'ipb_split',
            dict(dataset='{data}', labeled='half', name='x'),
            'labeled: found half; expected a share from 0 to 1, or rest',
        ),
        ('ipb_split', dict(dataset='{data}', by='track', name='x'), 'by track: found 86 colonies without track_id'),
        ('ipb_split', dict(dataset='{data}', frozen='none', name='x'), 'no such split; expected one of default'),
        (
            'ipb_split',
            dict(dataset='{data}', frozen='default', by='group', name='x'),
            'by: found group; expected random, as in default',
        ),
        (
            'ipb_import',
            dict(path='{cells}', dest='{tmp}/x', kind='zip'),
            'kind: found zip; expected folders, voc, csv, masks, rois',
        ),
        ('ipb_import', dict(path='{cells}', dest='{data}', add=True, margin=9), 'margin: found 9 px; expected 112 px'),
        ('ipb_dataset', dict(dataset='{tmp}'), 'expected a colony dataset'),
        ('ipb_dataset', dict(dataset='{data}', out='{tmp}/x.foo'), 'expected a name that ends in .png'),
        ('ipb_split', dict(dataset='{data}', seed=-1, name='x'), 'seed: found -1'),
        ('ipb_split', dict(dataset='{data}', test=float('nan'), name='x'), 'labeled, test: found 0.1, nan'),
        ('ipb_split', dict(dataset='{data}', labeled='1', name='x'), 'rest takes all labels outside the test set'),
        ('ipb_train', dict(data='{data}', out='{run}'), r'found a run \(done\); expected a new folder'),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', fold=7), 'fold: found 7; expected 0 to 1'),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', split='mine'), 'no such split; expected one of default'),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', arch='hrnett'), 'arch: found hrnett'),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', scales='64,128'), 'largest first'),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', scales='512'), 'scales: found 512 px; expected at most'),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', scales='180um'), 'pixel_size: found nothing'),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', arch='hrnet', scales='100'),
            'expected a side that hrnet takes. Near that: 96 or 112 or 128 px',
        ),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', width=0.5), 'width: found 0.5; expected 1 for test_resnet'),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', strong='auto'),
            'strong: found auto; expected strong or randaug',
        ),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', small='stretch'),
            'small: found stretch; expected context or enlarge',
        ),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', feedback='approx'),
            'feedback: found approx; expected exact or taylor or cosine or reference or none or ema',
        ),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', feedback='reference', amp=True),
            'amp: found True; expected no, with feedback reference',
        ),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', balance_on='some'),
            'balance_on: found some; expected all or confident',
        ),
        (
            'ipb_train',
            dict(data='{data}', out='{tmp}/r', select='best'),
            'select: found best; expected valid or last or test',
        ),
        ('ipb_train', dict(data='{data}', out='{tmp}/r', preset='fast'), 'preset: found fast; expected paper or quick'),
        ('ipb_report', dict(path='{tmp}/none'), 'none'),
    ],
)
def test_errors_say_what_to_do(command, kwargs, says, class_folders, dataset, run, tmp_path):
    before = (dataset / 'colonies.csv').read_text(), (run / 'run.json').read_text()
    kwargs = {
        k: v.format(cells=class_folders, data=dataset, run=run, tmp=tmp_path) if isinstance(v, str) else v
        for k, v in kwargs.items()
    }
    with pytest.raises(InputError, match=says):
        COMMANDS[command](**kwargs)
    assert not (tmp_path / 'x').exists() and not (tmp_path / 'r').exists()
    assert before == ((dataset / 'colonies.csv').read_text(), (run / 'run.json').read_text())


def test_an_error_is_one_line_and_exit_code_1(dataset, tmp_path):
    err = sh('ipb-train', dataset, '--out', tmp_path / 'r', '--fold', '7', ok=False)
    assert err.splitlines() == [
        'ipb-train: fold: found 7; expected 0 to 1. ' + f'{dataset}/splits/default.csv has no such fold.'
    ]


def test_unknown_field(dataset, tmp_path):
    r = subprocess.run([BIN / 'ipb-train', dataset, '--learning_rate', '1'], capture_output=True, text=True)
    assert r.returncode == 2 and 'unrecognized arguments: --learning_rate' in r.stderr


def test_simulate(tmp_path):
    assert '30 colonies' in sh('ipb-simulate', tmp_path / 'sim', '--colonies', 30)
    assert (tmp_path / 'sim' / 'truth').is_dir()
    out = sh(
        'ipb-simulate',
        tmp_path / 'exp',
        '--preset',
        'tiny',
        '--wells',
        2,
        '--interval_h',
        3,
        '--crops',
        tmp_path / 'cells',
        '--annotators',
        2,
    )
    assert 'exp: 2 wells' in out and f"colonies in {tmp_path / 'cells'}" in out
    assert set(pd.read_csv(tmp_path / 'exp' / 'truth' / 'colonies.csv').time_h) == {0, 3, 6}
    assert (
        len(list((tmp_path / 'exp').glob('raw/*/*.tif'))) == 6
        and len(list((tmp_path / 'cells' / 'annotations').glob('*.csv'))) == 2
    )


def test_parameters_of_the_notebook_are_those_of_the_configuration(tmp_path):
    check_parameters(train_notebook())
    nb = json.loads(train_notebook().read_text())
    cell = next(c for c in nb['cells'] if c['metadata'].get('tags') == ['parameters'])
    cell['source'] = [line.replace('momentum', 'inertia') for line in cell['source']]
    (tmp_path / 'renamed.ipynb').write_text(json.dumps(nb))
    with pytest.raises(InputError, match=r'inertia \(not in the configuration\), no momentum'):
        check_parameters(tmp_path / 'renamed.ipynb')
    cell['metadata'] = {}
    (tmp_path / 'untagged.ipynb').write_text(json.dumps(nb))
    with pytest.raises(InputError, match='cell tagged parameters'):
        check_parameters(tmp_path / 'untagged.ipynb')
    assert papermill.inspect_notebook(str(train_notebook()))


def test_a_failing_run_says_where(dataset, tiny, tmp_path):
    nb = json.loads(train_notebook().read_text())
    for c in nb['cells']:
        if 'train(cfg, data, out, resume)' in ''.join(c['source']):
            c['source'] = ['raise RuntimeError("the lamp went out")']
    (tmp_path / 'nb.ipynb').write_text(json.dumps(nb))
    with pytest.raises(InputError, match='train.ipynb: found RuntimeError: the lamp went out'):
        train_in_notebook(ExperimentConfig(**tiny), dataset, tmp_path / 'run', tmp_path / 'nb.ipynb')
    assert [f.name for f in (tmp_path / 'run').iterdir()] == ['train.ipynb']


@pytest.mark.parametrize('line', ['', 'completion', 'train --help', 'new project'])
def test_a_reader_that_has_read_enough_is_no_error(line, tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    r = subprocess.run([BIN / 'ipb', *line.split()], stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(theirs)
    assert (r.returncode, r.stderr) == (0, '')


def test_pages_open_before_pytorch_is_loaded(run):
    code = """import sys, time
import ipb_nb.annotate, ipb_nb.learn
from ipb_nb.inspect import MisclassifiedExplorer
w = MisclassifiedExplorer(sys.argv[1])
assert 'torch' not in sys.modules
while not {'ipb_nb.student', 'timm'} <= sys.modules.keys():  # soon, so that all patches of a colony come at once
    time.sleep(0.1)"""
    subprocess.run([sys.executable, '-c', code, run], check=True, timeout=120)
