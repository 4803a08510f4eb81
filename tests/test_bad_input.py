"A damaged dataset is noticed before the first training step, by file and line."
import shutil

import numpy as np
import pandas as pd
import pytest

from ipb_nb.core import InputError, write_png
from ipb_nb.dataset import ColonyDataset, import_voc, make_split, write_dataset
from ipb_nb.experiment import ExperimentConfig, check_run


@pytest.fixture
def copy(dataset, tmp_path): return shutil.copytree(dataset, tmp_path/'copy')


def change(file, **columns):
    "Set columns of the third row; None drops the column."
    df = pd.read_csv(file, keep_default_na=False)
    for c, v in columns.items():
        if v is None: df = df.drop(columns=c)
        else: df.loc[2, c] = v
    df.to_csv(file, index=False)


@pytest.mark.parametrize('columns, says', [
    (dict(label='round'), 'colonies.csv, line 4: found label round; expected one of coarse, fine, middle'),
    (dict(area_px=None), 'colonies.csv: found no column area_px'),
    (dict(colony_id='coarse-00'), 'colonies.csv, line 4: found colony coarse-00 a second time'),
])
def test_table(copy, columns, says):
    change(copy/'colonies.csv', **columns)
    with pytest.raises(InputError, match=says): ColonyDataset(copy)


def test_empty_table(copy):
    pd.read_csv(copy/'colonies.csv').iloc[:0].to_csv(copy/'colonies.csv', index=False)
    with pytest.raises(InputError, match='colonies.csv: found no rows; expected at least one colony'): ColonyDataset(copy)


def damaged(copy, part):
    "The image file of a colony of a part."
    split = pd.read_csv(copy/'splits'/'default.csv', keep_default_na=False)
    return split.query(f'fold == 0 and part == "{part}"').colony_id.iloc[-1]


@pytest.mark.parametrize('part', ['L', 'U', 'T'])
def test_images_and_masks_are_checked_before_training(copy, tiny, part, tmp_path):
    i = damaged(copy, part)
    write_png(np.ones((9, 9), bool), copy/'masks'/f'{i}.png')
    with pytest.raises(InputError, match=rf'{i}.png: found a mask of \(9, 9\)'): check_run(ExperimentConfig(**tiny), copy, tmp_path/'run')
    (copy/'images'/f'{i}.png').write_text('no image')
    with pytest.raises(InputError, match=f'{i}.png: found 8 bytes that cannot be read'): check_run(ExperimentConfig(**tiny), copy, tmp_path/'run')
    (copy/'images'/f'{i}.png').unlink()
    with pytest.raises(InputError, match=f'{i}.png: found no such file'): check_run(ExperimentConfig(**tiny), copy, tmp_path/'run')


def test_split_of_another_dataset(copy, tiny, tmp_path):
    pd.read_csv(copy/'colonies.csv').query('colony_id != "fine-03"').to_csv(copy/'colonies.csv', index=False)
    with pytest.raises(InputError, match='default.csv: found colony fine-03'): check_run(ExperimentConfig(**tiny), copy, tmp_path/'run')


def test_foreign_files_in_the_run_folder_stay(dataset, tiny, tmp_path):
    (tmp_path/'mine.txt').write_text('stays')
    with pytest.raises(InputError, match='found other files; expected a new or empty folder'): check_run(ExperimentConfig(**tiny), dataset, tmp_path)
    assert (tmp_path/'mine.txt').read_text() == 'stays'


def test_mask_of_another_shape_leaves_nothing(tmp_path):
    row = dict(colony_id='a', label='x', source='', group='', box=(0, 0, 5, 5), pixels=np.zeros((5, 5), np.uint8), mask=np.ones((4, 5), bool))
    with pytest.raises(InputError, match=r'mask of a: found shape \(4, 5\)'): write_dataset(tmp_path/'ds', [row], ['x'])
    assert not any(tmp_path.iterdir())


def test_shares():
    labels = pd.Series('x', [f'c{i}' for i in range(50)])
    with pytest.raises(InputError, match='labeled, test'): make_split(labels, ['x'], labeled=.8, test=.3)


@pytest.mark.parametrize('text, says', [
    ('<annotation><object/></annotation>', 'object 1: found None as name'),
    ('<annotation></annotation>', 'annotation: found None as filename'),
    ('<annotation', 'XML that cannot be read'),
])
def test_odd_annotations_are_passed_over(voc, tmp_path, text, says):
    shutil.copytree(voc, tmp_path/'voc')
    (tmp_path/'voc'/'Annotations'/'odd.xml').write_text(text)
    ds = import_voc(tmp_path/'voc', tmp_path/'out')
    assert len(ds) == 4 and says in ds.failures.set_index('source').reason['odd.xml']
