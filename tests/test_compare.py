"Comparisons: how rows are named, which runs cannot be compared, and everything that a note warns of."

import os
import shutil

import pytest

from ipb_nb.compare import baseline_tests, compare, notes, related_row, row_names
from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.importers import import_folders
from ipb_nb.run import ORACLE_ROWS, find_runs, oracle_sweep
from ipb_nb.split import save_split


@pytest.fixture(scope='module')
def swept(class_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp('compare')
    ds = import_folders(class_folders, root / 'colonies')
    save_split(ds, labeled=0.25, test=0.25, valid=0.0, folds=4)
    oracle_sweep(root / 'runs', ds)
    return root / 'runs'


def test_rows_have_the_name_of_their_folders(swept):
    runs = find_runs(swept)[0]
    assert set(row_names(runs)) == set(ORACLE_ROWS) - {'VGG19'}
    os.rename(swept / 'HRNet-fold0', swept / 'by-hand')  # a folder with a name of its own
    try:
        names = set(row_names(find_runs(swept)[0])) - set(ORACLE_ROWS)
    finally:
        os.rename(swept / 'by-hand', swept / 'HRNet-fold0')
    assert names == {'Supervised, scales 128'}


@pytest.mark.parametrize(
    'method, row', [('simclr', 'SimCLR'), ('clustering', 'CC'), ('clustering_finetuned', None), ('fixmatch', None)]
)
def test_related_methods(method, row):
    assert related_row(dict(method=method)) == row


def test_runs_of_different_classes(swept):
    other = swept / 'other'
    shutil.copytree(swept / 'HRNet-fold0', other)
    write_json(read_json(other / 'metrics.json') | dict(classes=['fine', 'coarse']), other / 'metrics.json')
    write_json(read_json(other / 'run.json') | dict(files={}), other / 'run.json')
    classes = ', '.join(find_runs(swept / 'HRNet-fold0')[0][0].classes)
    says = rf'found runs of different classes: HRNet-fold0 \({classes}\) and other \(fine, coarse\)'
    try:
        with pytest.raises(InputError, match=says + '; expected runs of one dataset'):
            compare(swept)
    finally:
        shutil.rmtree(other)


def test_notes(swept):
    c = compare(swept)
    c.rows = {row: [r for r in runs if r.config['fold'] < 3] for row, runs in c.rows.items()}
    assert '3 folds are too few' in notes(c)[-1] and '2/2^3 = 0.25' in notes(c)[-1]
    c.rows['MPL'][0].info['test_sha256'] = 'another'
    c.rows['frozen'].append(c.rows['frozen'][0])
    c.runs[0].info['data_sha256'] = 'another'
    c.rows['HRNet'][0].metrics['selected_on'] = 'T'
    said = ' '.join(notes(c))
    for words in (
        'Some folds of frozen were run twice',
        'not made on the same dataset',
        'HRNet on T/V',
        'too good to be trusted',
        'because the test colonies differ: MPL.',
    ):
        assert words in said
    assert baseline_tests(c).loc['MPL', 'folds'] == 0


def test_a_class_that_the_test_set_lacks_counts_in_no_mean(swept):
    whole, c = compare(swept), compare(swept)
    name = c.classes[0]
    m = c.rows['HRNet'][0].metrics['student']
    for k in ('tpr', 'f1'):
        m[k][name] = None
    m['precision'][name] = 0.0
    column = ('precision', name)
    assert c.folds.loc['HRNet'][column].mean() == pytest.approx(whole.folds.loc['HRNet'][column][1:].mean())
