"A damaged dataset is noticed before the first training step, by file and line."

import shutil

import numpy as np
import pandas as pd
import pytest

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, write_json, write_png
from ipb_nb.crop import colony_row
from ipb_nb.dataset import ColonyDataset, write_dataset
from ipb_nb.experiment import check_run
from ipb_nb.importers import import_voc
from ipb_nb.split import Split, make_split


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / 'copy')


def change(file, **columns):
    "Set columns of the third row; None drops the column."
    df = pd.read_csv(file, keep_default_na=False, dtype=str)
    for c, v in columns.items():
        if v is None:
            df = df.drop(columns=c)
        else:
            df.loc[2, c] = v
    df.to_csv(file, index=False)


@pytest.mark.parametrize(
    'columns, says',
    [
        (dict(label='round'), 'colonies.csv, line 4: found label round; expected one of coarse, fine, middle'),
        (dict(area_px=None), 'colonies.csv, line 1: found no column area_px'),
        (dict(colony_id='coarse-00'), 'colonies.csv, line 4: found colony coarse-00 a second time'),
        (dict(colony_id=''), 'colonies.csv, line 4: found no colony_id'),
        (dict(colour='red'), 'colonies.csv, line 1: found column colour; expected some of colony_id, image'),
        (dict(label='nan'), 'colonies.csv, line 4: found label nan; expected one of coarse'),
        (dict(y0='high'), 'colonies.csv, line 4: found high as y0; expected a whole number from 0'),
        (dict(x1=''), 'colonies.csv, line 4: found nothing as x1'),
        (dict(x1='0'), r'colonies.csv, line 4: found the box 0, 0, 70, 0; expected y0 < y1 and x0 < x1'),
        (dict(touches_border='maybe'), 'colonies.csv, line 4: found maybe as touches_border; expected True or False'),
        (
            dict(image='images/gone.png'),
            'images/gone.png: found no such file; expected the image named in line 4 of colonies.csv',
        ),
        (dict(mask='masks/gone.png'), 'masks/gone.png: found no such file; expected the mask named in line 4'),
    ],
)
def test_table(copy, columns, says):
    change(copy / 'colonies.csv', **columns)
    with pytest.raises(InputError, match=says):
        ColonyDataset(copy)


def test_a_table_back_from_a_spreadsheet_is_read(copy):
    f = copy / 'colonies.csv'
    was = ColonyDataset(copy).colonies
    f.write_bytes(b'\xef\xbb\xbf' + f.read_bytes().replace(b',', b';').replace(b'\n', b'\r\n'))
    pd.testing.assert_frame_equal(ColonyDataset(copy).colonies, was)
    f.write_text(f.read_bytes().decode('utf-8-sig'), encoding='utf-16')
    pd.testing.assert_frame_equal(ColonyDataset(copy).colonies, was)


def test_text_that_is_not_utf8(copy):
    f = copy / 'colonies.csv'
    f.write_bytes(f.read_bytes().replace(b'fine-03', b'f\xefne-03', 1))
    line = 1 + next(k for k, o in enumerate(f.read_bytes().split(b'\n')) if b'\xef' in o)
    with pytest.raises(
        InputError, match=f'colonies.csv, line {line}: found a byte that is not UTF-8 .0xef.; expected UTF-8 text'
    ):
        ColonyDataset(copy)


def test_a_dataset_of_another_format(copy):
    info = read_json(copy / 'dataset.json')
    write_json({k: v for k, v in info.items() if k != 'margin'}, copy / 'dataset.json')
    with pytest.raises(InputError, match='dataset.json: found no margin'):
        ColonyDataset(copy)


@pytest.mark.parametrize(
    'line, says',
    [
        ('fine-03,0,L,fine', 'found colony fine-03 a second time in fold 0'),
        ('nobody,0,L,fine', 'found colony nobody'),
        ('fine-03,0,X,fine', 'found part X; expected L, V, U, T'),
        ('fine-03,0,L,round', 'found label round'),
        ('fine-03,one,L,fine', 'found one as fold'),
    ],
)
def test_a_damaged_split(copy, line, says):
    f = copy / 'splits' / 'default.csv'
    n = f.read_text().count('\n') + 1
    f.write_text(f.read_text() + line + '\n')
    with pytest.raises(InputError, match=f'default.csv, line {n}: {says}'):
        Split(ColonyDataset(copy))


def test_empty_table(copy):
    pd.read_csv(copy / 'colonies.csv').iloc[:0].to_csv(copy / 'colonies.csv', index=False)
    with pytest.raises(InputError, match='colonies.csv: found no rows; expected at least one colony'):
        ColonyDataset(copy)


def damaged(copy, part):
    "The image file of a colony of a part."
    split = pd.read_csv(copy / 'splits' / 'default.csv', keep_default_na=False)
    return split.query(f'fold == 0 and part == "{part}"').colony_id.iloc[-1]


@pytest.mark.parametrize('part', ['L', 'U', 'T'])
def test_images_and_masks_are_checked_before_training(copy, tiny, part, tmp_path):
    i = damaged(copy, part)
    write_png(np.ones((9, 9), bool), copy / 'masks' / f'{i}.png')
    with pytest.raises(InputError, match=rf'{i}.png: found a mask of \(9, 9\)'):
        check_run(ExperimentConfig(**tiny), copy, tmp_path / 'run')
    (copy / 'images' / f'{i}.png').write_text('no image')
    with pytest.raises(InputError, match=f'{i}.png: found 8 bytes that cannot be read'):
        check_run(ExperimentConfig(**tiny), copy, tmp_path / 'run')
    (copy / 'images' / f'{i}.png').unlink()
    with pytest.raises(InputError, match=f'{i}.png: found no such file'):
        check_run(ExperimentConfig(**tiny), copy, tmp_path / 'run')


def test_split_of_another_dataset(copy, tiny, tmp_path):
    pd.read_csv(copy / 'colonies.csv').query('colony_id != "fine-03"').to_csv(copy / 'colonies.csv', index=False)
    with pytest.raises(InputError, match='default.csv, line 29: found colony fine-03'):
        check_run(ExperimentConfig(**tiny), copy, tmp_path / 'run')


def test_foreign_files_in_the_run_folder_stay(dataset, tiny, tmp_path):
    (tmp_path / 'mine.txt').write_text('stays')
    with pytest.raises(InputError, match='found other files; expected a new or empty folder'):
        check_run(ExperimentConfig(**tiny), dataset, tmp_path)
    assert (tmp_path / 'mine.txt').read_text() == 'stays'


def test_mask_of_another_shape_leaves_nothing(tmp_path):
    row = dict(
        colony_id='a',
        label='x',
        source='',
        group='',
        box=(0, 0, 5, 5),
        pixels=np.zeros((5, 5), np.uint8),
        mask=np.ones((4, 5), bool),
    )
    with pytest.raises(InputError, match=r'mask of a: found shape \(4, 5\)'):
        write_dataset(tmp_path / 'ds', [row], ['x'])
    assert not any(tmp_path.iterdir())


def test_nothing_is_added_after_an_error(tmp_path):
    def row(i, **fields):
        im = np.random.default_rng(ord(i)).integers(0, 255, (9, 9), dtype=np.uint8)
        return colony_row(im, (0, 0, 9, 9), im > 99, colony_id=i, source=i, group='w', sha256=i) | fields

    ds = write_dataset(tmp_path / 'ds', [row('a', label='x'), row('b')], ['x', 'y'], pixel_size=0.8)
    before = {f: f.read_bytes() for f in ds.path.rglob('*') if f.is_file()}
    for rows, kwargs, says in [
        ([row('c'), row('b', colony_id='A', sha256='other')], {}, 'colony_id, b: found a second colony A'),
        ([row('c', label='z')], {}, 'found label z; expected one of x, y, multi-label'),
        ([row('c')], dict(pixel_size=0.5), 'pixel_size: found 0.5 µm'),
        ([row('c')], dict(margin=9), 'margin: found 9 px; expected 112 px'),
        ([], {}, 'found nothing to add; expected at least one colony'),
    ]:
        with pytest.raises(InputError, match=says):
            write_dataset(ds.path, rows, [], add=True, **kwargs)
    assert {f: f.read_bytes() for f in ds.path.rglob('*') if f.is_file() and f.name != '.lock'} == before
    with pytest.raises(InputError, match='nowhere: found no such folder; expected a dataset to add to'):
        write_dataset(tmp_path / 'nowhere', [row('c')], [], add=True)
    with pytest.raises(InputError, match='found no colonies; expected at least one colony'):
        write_dataset(tmp_path / 'empty', [], ['x'])


def test_shares():
    colonies = pd.DataFrame(dict(label='x', exclude=''), [f'c{i}' for i in range(50)])
    with pytest.raises(InputError, match='labeled, test'):
        make_split(colonies, ['x'], labeled=0.8, test=0.3)


@pytest.mark.parametrize(
    'text, says',
    [
        ('<annotation><object/></annotation>', 'object 1: found None as name'),
        ('<annotation></annotation>', 'annotation: found None as filename'),
        ('<annotation', 'XML that cannot be read'),
    ],
)
def test_odd_annotations_are_passed_over(voc, tmp_path, text, says):
    shutil.copytree(voc, tmp_path / 'voc')
    (tmp_path / 'voc' / 'Annotations' / 'odd.xml').write_text(text)
    ds = import_voc(tmp_path / 'voc', tmp_path / 'out')
    assert len(ds) == 4 and says in ds.failures.set_index('source').reason['odd.xml']
