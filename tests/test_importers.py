"The same field, brought in five ways; and an import that is stopped or meets bad files."

import multiprocessing
import os
import shutil
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile

from ipb_nb.core import InputError, write_png
from ipb_nb.crop import BOX
from ipb_nb.dataset import ColonyDataset, write_dataset
from ipb_nb.importers import import_csv, import_folders, import_masks, import_rois, import_voc, ipb_import

BOXES = [(20, 30, 80, 100), (0, 200, 40, 260), (120, 130, 190, 170)]


@pytest.fixture(scope='session')
def field(tmp_path_factory):
    "A field with three squares, as Pascal VOC, CSV, label image and Fiji ROIs."
    root = tmp_path_factory.mktemp('field')
    im = np.random.default_rng(0).normal(200, 4, (200, 260))
    labels = np.zeros(im.shape, np.uint16)
    for k, (y0, x0, y1, x1) in enumerate(BOXES, 1):
        im[y0:y1, x0:x1] -= 80
        labels[y0:y1, x0:x1] = k
    for d in ('voc/JPEGImages', 'csv', 'masks', 'rois'):
        write_png(np.clip(im, 0, 255).astype(np.uint8), root / d / 'w1.png')
    (root / 'voc' / 'Annotations').mkdir()
    objects = ''.join(
        f'<object><name>big</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>'
        for y0, x0, y1, x1 in BOXES
    )
    (root / 'voc' / 'Annotations' / 'w1.xml').write_text(
        f'<annotation><filename>w1.png</filename>{objects}</annotation>'
    )
    pd.DataFrame([dict(image='w1.png', label='big', **dict(zip(BOX, b))) for b in BOXES]).to_csv(
        root / 'csv' / 'cells.csv', index=False, sep=';', encoding='utf-8-sig', lineterminator='\r\n'
    )
    tifffile.imwrite(root / 'masks' / 'w1_cp_masks.tif', labels, compression='zlib')
    rois = [roifile.ImagejRoi.frompoints([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) for y0, x0, y1, x1 in BOXES]
    for k, r in enumerate(rois):
        r.name = f'big-{k}'
    roifile.roiwrite(root / 'rois' / 'w1.zip', rois)
    return root


def test_five_ways_to_the_same_colonies(field, tmp_path):
    ways = [
        import_voc(field / 'voc', tmp_path / 'voc'),
        import_csv(field / 'csv' / 'cells.csv', tmp_path / 'csv'),
        import_masks(field / 'masks', tmp_path / 'masks', ['big']),
        import_rois(field / 'rois', tmp_path / 'rois'),
    ]
    for ds in ways:
        assert [tuple(b) for b in ds.colonies[BOX].values] == BOXES and not len(ds.failures)
        assert ds.colonies.touches_border.tolist() == [False, True, False]
        assert ds.classes == ['big'] and set(ds.colonies.label) == ({''} if 'masks' in ds.path.name else {'big'})
        for i, (y0, x0, y1, x1) in zip(ds.colonies.index, BOXES):
            image, mask = ds.pixels(i)
            assert mask.sum() == (y1 - y0) * (x1 - x0)
            assert (
                image
                == cv2.imread(str(field / 'csv' / 'w1.png'), 0)[
                    max(y0 - 112, 0) : y1 + 112, max(x0 - 112, 0) : x1 + 112
                ]
            ).all()
    # all into one: the picture and its boxes are known, so nothing is stored again, and the labels come along
    ds = import_rois(field / 'rois', tmp_path / 'masks', add=True)
    assert len(ds) == 3 and set(ds.colonies.label) == {'big'}
    other = import_csv(field / 'csv' / 'cells.csv', tmp_path / 'masks', ['big'], add=True, prefix='x-')
    assert len(other) == 3 and sorted(o.name for o in (tmp_path / 'masks' / 'images').iterdir()) == [
        f'{i}.png' for i in ds.colonies.index
    ]


def test_two_plates_with_equal_names(class_folders, tmp_path):
    other = shutil.copytree(class_folders, tmp_path / 'plate2')
    for f in other.rglob('*.png'):
        cv2.imwrite(str(f), 255 - cv2.imread(str(f), 0))
    ds = import_folders(class_folders, tmp_path / 'ds')
    before = {f: f.read_bytes() for f in ds.path.rglob('*.*')}
    with pytest.raises(
        InputError, match='found a second colony .*-00; expected one colony per name. .*--prefix plate2-'
    ):
        import_folders(other, tmp_path / 'ds', add=True)
    assert {f: f.read_bytes() for f in ds.path.rglob('*.*') if f.name != '.lock'} == before
    ds = import_folders(other, tmp_path / 'ds', add=True, prefix='plate2-')
    assert (
        len(ds) == 172 and (ds.colonies.label[ds.colonies.index.str.startswith('plate2-')].value_counts()['fine']) == 24
    )
    assert not set(ds.colonies.group[:86]) & set(ds.colonies.group[86:])
    root = (ds.path / ds.info['raw_root']).resolve()
    assert all((root / s).exists() for s in ds.colonies.source)


def test_the_same_picture_under_two_classes_is_reported(class_folders, tmp_path):
    cells = shutil.copytree(class_folders, tmp_path / 'cells')
    shutil.copy(cells / 'fine' / '03.png', cells / 'middle' / 'extra.png')
    ds = import_folders(cells, tmp_path / 'ds')
    assert len(ds) == 86
    assert ds.failures.reason.tolist() == ['the same picture is fine-03 already, labelled fine, not middle']


def slow_import(dest):
    def rows():
        for k in range(40):
            time.sleep(0.05)
            yield dict(
                colony_id=f'new{k}',
                label='',
                source='',
                group='',
                box=(0, 0, 9, 9),
                touches_border=False,
                frame=0,
                pixels=np.zeros((9, 9), np.uint8),
                mask=np.ones((9, 9), bool),
            )

    write_dataset(dest, rows(), [], add=True)


def test_a_killed_import_leaves_the_dataset_as_it_was(class_folders, tmp_path):
    ds = import_folders(class_folders, tmp_path / 'ds')
    before = {f.relative_to(ds.path): f.read_bytes() for f in ds.path.rglob('*.*') if f.is_file()}
    p = multiprocessing.get_context('fork').Process(target=slow_import, args=(ds.path,))
    p.start()
    while not list(ds.path.glob('.adding/images/*.png')):
        time.sleep(0.02)
    p.kill()
    p.join()
    assert {
        k: v
        for k, v in {f.relative_to(ds.path): f.read_bytes() for f in ds.path.rglob('*.*') if f.is_file()}.items()
        if '.adding' not in k.parts and k.name != '.lock'
    } == before
    slow_import(ds.path)
    assert len(ColonyDataset(ds.path)) == 126 and not (ds.path / '.adding').exists()


def test_bad_files_are_passed_over(field, tmp_path):
    cells = shutil.copytree(field / 'masks', tmp_path / 'cells')
    write_png(np.zeros((50, 50), np.uint8), cells / 'small.png')
    tifffile.imwrite(cells / 'small_cp_masks.tif', np.ones((60, 50), np.uint8))
    write_png(np.zeros((50, 50), np.uint8), cells / 'none.png')
    tifffile.imwrite(cells / 'film.tif', np.zeros((7, 50, 50), np.uint8))
    tifffile.imwrite(cells / 'film_masks.tif', np.ones((50, 50), np.uint8))
    write_png(np.zeros((50, 50), np.uint8), cells / 'soft.png')
    tifffile.imwrite(cells / 'soft_masks.tif', np.full((50, 50), 0.5, np.float32))
    with open(os.fsencode(cells) + b'/caf\xe9.png', 'wb') as f:
        f.write((cells / 'none.png').read_bytes())
    with open(os.fsencode(cells) + b'/caf\xe9_masks.png', 'wb') as f:
        f.write((cells / 'none.png').read_bytes())
    with pytest.raises(InputError, match='5 files that could not be read'):
        ipb_import(cells, tmp_path / 'ds', classes='big')
    ds = ColonyDataset(tmp_path / 'ds')
    assert len(ds) == 3
    said = '\n'.join(ds.failures.reason)
    for words in (
        'small_cp_masks.tif: found a mask of 60×50 px; expected its image\'s size, 50×50 px',
        'none.png: found no label image for this image',
        'a stack of 7 planes',
        'fractional numbers',
        'a name that is not UTF-8',
    ):
        assert words in said


def test_damaged_rois(field, tmp_path):
    cells = shutil.copytree(field / 'rois', tmp_path / 'cells')
    write_png(np.zeros((50, 50), np.uint8), cells / 'b.png')
    (cells / 'b.zip').write_bytes(b'PK no zip')
    with pytest.raises(InputError, match='1 files that could not be read'):
        ipb_import(cells, tmp_path / 'ds')
    assert 'cannot be read as Fiji ROIs' in ColonyDataset(tmp_path / 'ds').failures.reason[0]


def textured(path, k, shape=(50, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(k).integers(0, 255, shape, dtype=np.uint8))


def listed(tmp_path, text, **kwargs):
    (tmp_path / 'list.csv').write_text(text)
    return import_csv(tmp_path / 'list.csv', tmp_path / 'ds', **kwargs)


def test_a_time_lapse_as_a_table(tmp_path):
    for k in (0, 1):
        textured(tmp_path / f'{k}.png', k)
    ds = listed(
        tmp_path,
        'image,label,group,frame,time_h,track_id,parent_ids,event\n0.png,D,w1,0,0.5,c1,,start\n1.png,Multi_Label,w1,1,1.5,c2,c1,split\n',
        prefix='p-',
    )
    assert ds.colonies[['group', 'frame', 'time_h', 'track_id', 'parent_ids', 'event']].values.tolist() == [
        ['p-w1', 0, 0.5, 'p-c1', '', 'start'],
        ['p-w1', 1, 1.5, 'p-c2', 'p-c1', 'split'],
    ]
    assert ds.colonies.label.tolist() == ['D', 'multi-label'] and ds.classes == ['D']


@pytest.mark.parametrize(
    'text, says',
    [
        ('image,label\n', 'found no rows'),
        ('image,label,y0,x0,y1,x1\n0.png,D,0,0,1e300,9\n', 'line 2: found 1e300 as y1; expected a whole number'),
        ('image,label\n0.png,excluded\n', "found 'excluded' as a class"),
        ('image,label\n0.png,D\n0.png,d\n', 'twice, if capitals do not count'),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, says):
    textured(tmp_path / '0.png', 0)
    with pytest.raises(InputError, match=says):
        listed(tmp_path, text)
    assert not (tmp_path / 'ds').exists()


@pytest.mark.parametrize(
    'text, says',
    [
        ('image,label\na.png,nan\n', 'list.csv, line 2: found label nan; expected a class name, or nothing'),
        ('image,label,colour\n', 'line 1: found column colour; expected some of image, label'),
        ('image,label,y0,x0,y1,x1\na.png,round,0,0,9,\n', 'line 2: found nothing as x1'),
        ('image,label\na.png,round\n\na.png,oval\n', 'line 4: found class oval; expected one of round'),
        ('image,label,colony_id\na.png,round,A\nb.png,round,a\n', 'line 3: found colony_id a a second time'),
    ],
)
def test_mistakes_in_a_table_are_named_by_their_line(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        listed(tmp_path, text, classes=['round'])


def test_class_folders_that_cannot_be(class_folders, tmp_path):
    says = 'with the groups well; expected named groups out of group, track_id'
    with pytest.raises(InputError, match=says):
        import_folders(class_folders, tmp_path / 'x', pattern='(?P<well>.)')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='empty: found no class names'):
        import_folders(tmp_path / 'empty', tmp_path / 'x')
    with pytest.raises(InputError, match='found no colonies'):
        import_folders(tmp_path / 'empty', tmp_path / 'x', classes=['Dense'])


def test_blanks_around_a_name(tmp_path):
    textured(tmp_path / 'c1' / 'A' / 'a.png', 0)
    textured(tmp_path / 'c2' / 'A' / 'a .png', 1)
    import_folders(tmp_path / 'c1', tmp_path / 'ds')
    with pytest.raises(InputError, match='found a second colony A-a;'):
        import_folders(tmp_path / 'c2', tmp_path / 'ds', add=True)
    assert len(ColonyDataset(tmp_path / 'ds')) == 1


def test_the_published_layout_can_grow(tmp_path):
    for plate in ('one', 'two'):
        for k, part in enumerate(('train', 'train', 'test', 'valid')):
            textured(tmp_path / plate / 'fold_0' / part / 'Dense' / f'{plate}{k}.png', hash(plate + part) + k & 0xFFFF)
    import_folders(tmp_path / 'one', tmp_path / 'ds')
    ds = import_folders(tmp_path / 'two', tmp_path / 'ds', add=True)
    assert len(ds) == 8 and {f.stem for f in (ds.path / 'splits').glob('*.csv')} == {'published', 'published-2'}
    textured(tmp_path / 'two' / 'fold_0' / 'odd' / 'x' / '1.png', 9)
    with pytest.raises(
        InputError,
        match='found the folders odd, test, train, valid; expected a folder for each class; or the published layout',
    ):
        import_folders(tmp_path / 'two', tmp_path / 'x')


def test_a_class_may_be_called_test(tmp_path):
    for k, c in enumerate(('Dense', 'test')):
        textured(tmp_path / 'cells' / c / f'{k}.png', k)
    assert import_folders(tmp_path / 'cells', tmp_path / 'ds').classes == ['Dense', 'test']


def test_where_the_masks_are(field, tmp_path, monkeypatch):
    plates = tmp_path / 'plates'
    shutil.copytree(field / 'masks', plates / 'masks')
    shutil.move(plates / 'masks' / 'w1.png', plates / 'w1.png')
    monkeypatch.chdir(tmp_path)
    for k, (path, masks) in enumerate(
        [('plates', plates / 'masks'), (plates, 'plates/masks'), ('plates', 'plates/masks')]
    ):
        assert len(import_masks(path, f'ds{k}', ['big'], masks=masks)) == 3
    with pytest.raises(InputError, match='nowhere: found no such folder'):
        import_masks(plates, 'x', ['big'], masks='nowhere')
    textured(tmp_path / 'cells' / 'A' / '1.png', 1)
    textured(tmp_path / 'cells' / 'A' / '2.png', 2)
    (tmp_path / 'drawn').mkdir()
    cv2.imwrite('drawn/1.png', np.full((50, 60), 255, np.uint8))
    assert (
        import_folders('cells', 'ds', masks='drawn').failures.item.tolist() == ['']
        and 'no mask of this name' in ColonyDataset('ds').failures.reason[0]
    )


def test_masks_beside_the_pictures_of_a_class(tmp_path):
    for k, c in enumerate('AB'):
        textured(tmp_path / 'cells' / c / '1.png', k)
        m = np.zeros((50, 60), np.uint8)
        m[5:15, 10:40] = 255
        cv2.imwrite(str(tmp_path / 'cells' / c / '1_mask.png'), m)
    (tmp_path / 'cells' / 'backup.zip').write_bytes(b'PK')
    ipb_import(tmp_path / 'cells', tmp_path / 'ds')
    ds = ColonyDataset(tmp_path / 'ds')
    assert ds.colonies.label.tolist() == ['A', 'B'] and ds.colonies.area_px.tolist() == [300, 300]


def test_numbers_of_a_mask_are_read_as_stored(field, tmp_path):
    labels = tifffile.imread(field / 'masks' / 'w1_cp_masks.tif')
    palette = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    for k, more in enumerate([dict(photometric='miniswhite'), dict(photometric='palette', colormap=palette)]):
        folder = shutil.copytree(field / 'masks', tmp_path / str(k))
        tifffile.imwrite(folder / 'w1_cp_masks.tif', labels.astype(np.uint8), **more)
        assert [tuple(b) for b in import_masks(folder, tmp_path / f'ds{k}', ['big']).colonies[BOX].values] == BOXES
    tifffile.imwrite(folder / 'w1_cp_masks.tif', labels.astype(np.uint32) * 1_000_000_000)
    assert import_masks(folder, tmp_path / 'big', ['big']).colonies.index[2] == 'w1-3000000000'


def test_a_box_without_its_mask(tmp_path):
    textured(tmp_path / '0.png', 0)
    m = np.zeros((50, 60), np.uint8)
    m[40:, 40:] = 255
    cv2.imwrite(str(tmp_path / 'm.png'), m)
    with pytest.raises(
        InputError,
        match='found no colonies and 1 failures, the first: list.csv, line 2: found a mask that is empty inside '
        'the box',
    ):
        listed(tmp_path, 'image,label,mask,y0,x0,y1,x1\n0.png,D,m.png,0,0,9,9\n')


def test_names_of_rois(field, tmp_path):
    cells = shutil.copytree(field / 'rois', tmp_path / 'cells')
    rois = roifile.roiread(cells / 'w1.zip')
    for r, n in zip(rois, ('Type-1', 'Type-2', 'Type-2-001')):
        r.name = n
    (cells / 'w1.zip').unlink()
    roifile.roiwrite(cells / 'w1.zip', rois)
    assert import_rois(cells, tmp_path / 'ds', classes=['Type-1', 'Type-2']).colonies.label.tolist() == [
        'Type-1',
        'Type-2',
        'Type-2',
    ]
    twin = [
        roifile.ImagejRoi.frompoints(p) for p in ([[0, 0], [20, 0], [20, 20]], [[0, 0], [20, 20], [0, 20]])
    ]  # one box, two outlines
    (cells / 'w1.zip').unlink()
    roifile.roiwrite(cells / 'w1.zip', twin)
    assert len(import_rois(cells, tmp_path / 'two', classes=['a'])) == 2


def test_nothing_is_left_out_without_a_word(tmp_path, capsys):
    textured(tmp_path / 'cells' / 'A' / '1.png', 1)
    (tmp_path / 'cells' / 'A' / '2.gif').write_bytes(b'GIF89a')
    shutil.copy(tmp_path / 'cells' / 'A' / '1.png', tmp_path / 'cells' / 'A' / '1 copy.png')
    textured(tmp_path / 'elsewhere' / '3.png', 3)
    (tmp_path / 'cells' / 'A' / 'more').symlink_to(tmp_path / 'elsewhere')
    ipb_import(tmp_path / 'cells', tmp_path / 'cells' / 'ds')
    said = capsys.readouterr().out
    assert '.gif is not read here' in said and '2 colonies' in said and '1 pictures were there already' in said
    ipb_import(
        tmp_path / 'cells', tmp_path / 'cells' / 'ds', add=True
    )  # a dataset in its own source is not imported into itself
    assert len(ColonyDataset(tmp_path / 'cells' / 'ds')) == 2


def test_a_tiff_in_name_only(tmp_path):
    textured(tmp_path / 'cells' / 'A' / '1.png', 1)
    shutil.copy(tmp_path / 'cells' / 'A' / '1.png', tmp_path / 'cells' / 'A' / '2.tif')
    tifffile.imwrite(tmp_path / 'cells' / 'A' / '3.tif', np.full((9, 9), np.nan, np.float32))
    ds = import_folders(tmp_path / 'cells', tmp_path / 'ds')
    assert ds.failures.source.tolist() == ['A/3.tif'] and 'no finite pixel' in ds.failures.reason[0]


@pytest.mark.parametrize(
    'kwargs, says',
    [
        (dict(margin=-5), 'margin: found -5'),
        (dict(pixel_size=0.0), 'pixel_size: found 0.0'),
        (dict(pixel_size=float('nan')), 'pixel_size: found nan'),
        (dict(classes='coarse,fine,middle,Fine'), 'fine twice, if capitals'),
    ],
)
def test_numbers_that_cannot_be(class_folders, tmp_path, kwargs, says):
    with pytest.raises(InputError, match=says):
        ipb_import(class_folders, tmp_path / 'ds', **({'classes': 'coarse,fine,middle'} | kwargs))
