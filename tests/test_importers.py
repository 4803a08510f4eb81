"The same field, brought in five ways; and an import that is stopped or meets bad files."

import os
import re
import shutil
import time
import unicodedata
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile
from PIL import Image

from ipb_nb.core import InputError, write_png
from ipb_nb.crop import BOX
from ipb_nb.dataset import ColonyDataset, write_dataset
from ipb_nb.importers import import_csv, import_folders, import_masks, import_rois, import_voc, ipb_import

BOXES = [(20, 30, 80, 100), (0, 200, 40, 260), (120, 130, 190, 170)]
from starts import copying


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
    p = copying().Process(target=slow_import, args=(ds.path,))
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


def noise():
    return np.random.default_rng(0).normal(120, 30, (120, 160)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def crops(tmp_path):
    "A crop of a class, its mask, and a function that imports them and gives the colony's area or the reason."
    folder = tmp_path / 'crops' / 'Dense'
    folder.mkdir(parents=True)
    Image.fromarray(noise()).save(folder / 'w1.png')
    yy, xx = np.ogrid[:120, :160]
    mask = (yy - 60) ** 2 + (xx - 80) ** 2 < 30**2

    def read():
        try:
            ipb_import(tmp_path / 'crops', tmp_path / 'ds')
        except InputError as e:
            return str(e)
        ds = ColonyDataset(tmp_path / 'ds')
        shutil.rmtree(ds.path)
        return int(ds.colonies.area_px.iloc[0]), [
            *ds.failures.reason,
            *ds.info['imports'][0].get('masks_of_whole_images', []),
        ]

    return folder, mask, read


STORED_MASKS = {
    'indexed.png': lambda f, m: Image.fromarray(m.astype(np.uint8) * 255).convert('P').save(f),
    'black is index 1.png': lambda f, m: palette(np.where(m, 0, 1), [255, 255, 255, 0, 0, 0]).save(f),
    'VOC colours.png': lambda f, m: palette(m, [0, 0, 0, 128, 0, 0]).save(f),
    'one bit.png': lambda f, m: Image.fromarray(m).save(f),
    'one bit.bmp': lambda f, m: Image.fromarray(m).save(f),
    'alpha.png': lambda f, m: Image.fromarray(np.dstack([m * 255] * 3 + [m * 0 + 255]).astype(np.uint8)).save(f),
    'boolean.tif': lambda f, m: tifffile.imwrite(f, m),
    'fax.tif': lambda f, m: Image.fromarray(m).save(f, compression='group4'),
    'white is zero.tif': lambda f, m: tifffile.imwrite(f, 255 - m.astype(np.uint8) * 255, photometric='miniswhite'),
    'deep white is zero.tif': lambda f, m: tifffile.imwrite(
        f, 65535 - m.astype(np.uint16) * 65535, photometric='miniswhite'
    ),
    'ImageJ inverting.tif': lambda f, m: tifffile.imwrite(
        f, m.astype(np.uint8) * 255, photometric='miniswhite', imagej=True
    ),
    'ones, white is zero.tif': lambda f, m: tifffile.imwrite(f, m.astype(np.uint8), photometric='miniswhite'),
    'planes.tif': lambda f, m: tifffile.imwrite(f, np.stack([m * 255] * 3).astype(np.uint8), photometric='rgb'),
    'turned.tif': lambda f, m: tifffile.imwrite(f, m.astype(np.uint8), extratags=[(274, 3, 1, 3, True)]),
    'best quality.jpg': lambda f, m: Image.fromarray(m.astype(np.uint8) * 255).save(f, quality=95),
    'poor quality.jpg': lambda f, m: Image.fromarray(m.astype(np.uint8) * 255).save(f, quality=30),
    'grey level 100.jpg': lambda f, m: Image.fromarray(m.astype(np.uint8) * 100).save(f),
    'colour.jpg': lambda f, m: Image.fromarray(np.dstack([m * 255] * 3).astype(np.uint8)).save(f),
    'jpeg.tif': lambda f, m: tifffile.imwrite(f, m.astype(np.uint8) * 255, compression='jpeg'),
}


def palette(numbers, colours):
    im = Image.fromarray(np.asarray(numbers).astype(np.uint8))
    im.putpalette(colours)
    return im


@pytest.mark.parametrize('name', STORED_MASKS)
def test_a_mask_in_any_storage(crops, name):
    folder, mask, read = crops
    STORED_MASKS[name](folder / f'w1_mask{Path(name).suffix}', mask)
    said = read()
    assert not isinstance(said, str), said
    area, reasons = said
    lossy = name.endswith('.jpg') or name == 'jpeg.tif'
    assert area == pytest.approx(mask.sum(), abs=mask.sum() * 0.01 * lossy) and not reasons


def test_masks_that_cannot_be_told(crops, capsys):
    folder, mask, read = crops
    rng = np.random.default_rng(0)
    photo = np.clip(120 + 60 * mask + rng.normal(0, 15, mask.shape), 0, 255).astype(np.uint8)
    for im in (photo, rng.integers(0, 256, mask.shape, np.uint8), np.where(mask, 200, 110).astype(np.uint8)):
        Image.fromarray(im).save(folder / 'w1_mask.jpg')
        assert 'JPEG picture with more than two levels' in read()
    (folder / 'w1_mask.jpg').unlink()
    Image.fromarray(np.zeros_like(photo)).save(folder / 'w1_mask.png')
    assert 'a mask without a colony' in read()
    Image.fromarray(np.full_like(photo, 255)).save(folder / 'w1_mask.png')
    assert read() == (photo.size, ['Dense/w1.png'])
    assert 'note: Dense/w1.png: the mask covers its whole image' in capsys.readouterr().out


def test_label_images_in_any_storage(tmp_path):
    folder = tmp_path / 'fields'
    folder.mkdir()
    Image.fromarray(noise()).save(folder / 'w1.png')
    labels = np.zeros((120, 160), np.uint8)
    labels[20:50, 20:60], labels[70:90, 90:120] = 1, 2
    colours = np.random.default_rng(0).integers(1, 2**16, (3, 256), dtype=np.uint16)
    for k, (name, write) in enumerate(
        {
            'w1_masks.png': lambda f: palette(labels, [0, 0, 0, 255, 0, 0, 0, 255, 0]).save(f),
            'w1_labels.png': lambda f: palette(labels, [9, 9, 9, 255, 0, 0, 0, 255, 0]).save(f),
            'w1_cp_masks.tif': lambda f: tifffile.imwrite(f, labels, photometric='palette', colormap=colours),
            'w1_label.tif': lambda f: tifffile.imwrite(f, labels, photometric='miniswhite'),
            'w1_mask.tif': lambda f: tifffile.imwrite(f, labels.astype(np.float64), compression='lzw'),
            'w1-Object Identities.tif': lambda f: tifffile.imwrite(f, labels, compression='jpeg2000'),
            'w1_masks.bmp': lambda f: Image.fromarray(labels).save(f),
            'w1_seg.npy': lambda f: np.save(f, labels.astype(np.int32)),
            'w1_mask.png': lambda f: Image.fromarray(np.dstack([labels] * 3)).save(f),
        }.items()
    ):
        write(folder / name)
        ipb_import(folder, tmp_path / f'ds{k}', classes='A,B')
        ds = ColonyDataset(tmp_path / f'ds{k}')
        assert ds.colonies.area_px.tolist() == [1200, 600] and not len(ds.failures), name
        (folder / name).unlink()
    for name, write, says in [
        ('w1_masks.jpg', lambda f: Image.fromarray(labels * 100).save(f), 'numbers changed by JPEG'),
        ('w1_masks.tif', lambda f: tifffile.imwrite(f, labels * 100, compression='jpeg'), 'numbers changed by JPEG'),
        ('w1_seg.npy', lambda f: np.save(f, dict(masks=labels), allow_pickle=True), 'found a pickle.*save the masks'),
        ('w1_masks.tif', lambda f: tifffile.imwrite(f, labels.astype(np.int16) - 1), 'found numbers below 0'),
    ]:
        write(folder / name)
        with pytest.raises(InputError, match=says):
            ipb_import(folder, tmp_path / 'bad', classes='A,B')
        (folder / name).unlink()
    tifffile.imwrite(folder / 'w1_masks.tif', labels + 1)
    ipb_import(folder, tmp_path / 'full', classes='A,B')
    assert ColonyDataset(tmp_path / 'full').info['imports'][0]['masks_of_whole_images'] == ['w1_masks.tif']


def test_masks_of_nothing_and_of_everything_are_named(tmp_path, capsys):
    folder, whole = tmp_path / 'fields', roifile.ImagejRoi.frompoints([[0, 0], [60, 0], [60, 50], [0, 50]])
    for k, name in enumerate('abc'):
        textured(folder / f'{name}.png', k)
        numbers = np.full((50, 60), dict(a=0, b=1).get(name, 0), np.uint8)
        numbers[10:20, 10:20] += name == 'c'
        tifffile.imwrite(folder / f'{name}_masks.tif', numbers)
    ipb_import(folder, tmp_path / 'ds', classes='A')
    ds = ColonyDataset(tmp_path / 'ds')
    assert ds.failures[['source', 'reason']].values.tolist() == [['a.png', 'a_masks.tif holds no object']]
    said = capsys.readouterr().out
    assert 'skipped: a.png : a_masks.tif holds no object' in said
    assert 'note: b_masks.tif: the mask covers its whole image' in said and ds.colonies.area_px.tolist() == [3000, 100]
    for name in 'abc':
        (folder / f'{name}_masks.tif').unlink()
    whole.tofile(folder / 'b.roi')
    with zipfile.ZipFile(folder / 'a.zip', 'w') as z:
        z.writestr('readme.txt', '')
    with pytest.raises(InputError, match='2 files that could not be read'):
        ipb_import(folder, tmp_path / 'rois', classes='A')
    ds = ColonyDataset(tmp_path / 'rois')
    reasons = ds.failures.set_index('source').reason
    assert 'no .roi in it' in reasons['a.png'] and 'no ROI file for this image' in reasons['c.png']
    assert re.search(r'note: b.roi ROI 1 \(.*\): the mask covers its whole image', capsys.readouterr().out)


def test_masks_of_no_image_are_named(tmp_path):
    cells = tmp_path / 'cells'
    for name in ('w1.png', 'w2_masks.png', 'w3_cp_masks.tif', 'w4_seg.npy', 'notes.txt', 'w5.txt'):
        textured(cells / 'A' / 'w1.png', 0)
        if name.endswith('npy'):
            np.save(cells / 'A' / name, np.ones((50, 60), int))
        elif name.endswith('txt'):
            (cells / 'A' / name).write_text('not a map' if name == 'notes.txt' else '0 0 1 1\n' * 4)
        elif name != 'w1.png':
            textured(cells / 'A' / name, 1)
    with pytest.raises(InputError, match='4 files that could not be read'):
        ipb_import(cells, tmp_path / 'ds')
    ds = ColonyDataset(tmp_path / 'ds')
    assert ds.colonies.source.tolist() == ['A/w1.png']
    assert sorted(ds.failures.source) == ['A/w2_masks.png', 'A/w3_cp_masks.tif', 'A/w4_seg.npy', 'A/w5.txt']
    assert ds.failures.reason.str.contains('without its image').all()
    # in a folder of their own, too; and Cellpose's second file beside the first is no mistake
    (tmp_path / 'drawn').mkdir()
    cv2.imwrite(str(tmp_path / 'drawn' / 'w1.png'), np.eye(50, 60, dtype=np.uint8) * 255)
    cv2.imwrite(str(tmp_path / 'drawn' / 'w9.png'), np.eye(50, 60, dtype=np.uint8) * 255)
    for f in (cells / 'A').glob('w[2-5]*'):
        f.unlink()
    ds = import_folders(cells, tmp_path / 'ds2', masks=tmp_path / 'drawn')
    assert ds.failures.source.tolist() == ['w9.png'] and ds.colonies.area_px.tolist() == [50]
    textured(tmp_path / 'fields' / 'a.png', 0)
    tifffile.imwrite(tmp_path / 'fields' / 'a_cp_masks.tif', np.eye(50, 60, dtype=np.uint8))
    np.save(tmp_path / 'fields' / 'a_seg.npy', dict(masks=1), allow_pickle=True)
    ipb_import(tmp_path / 'fields', tmp_path / 'ds3', classes='A')
    assert ColonyDataset(tmp_path / 'ds3').failures.reason.tolist() == ['a_cp_masks.tif was taken for a.png']


def test_what_nas_and_desktops_leave(tmp_path):
    cells = tmp_path / 'cells'
    for k, name in enumerate(('Dense/a.png', 'Diff/b.png', 'Dense/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg')):
        textured(cells / name, k)
    for name in ('@eaDir', '$RECYCLE.BIN/S-1', 'System Volume Information', '#recycle', '__MACOSX/Dense', 'empty'):
        textured(cells / name / '._a.png', 9)
    textured(cells / '__MACOSX' / 'Dense' / 'a.png', 10)
    textured(cells / 'Diff' / 'b_thumb4D1E7C4E-AA11-4B0B-A55B-0123456789AB.png', 11)
    os.symlink('..', cells / 'Dense' / 'up')
    os.symlink('../..', cells / 'Diff' / 'far up')
    ds = import_folders(cells, tmp_path / 'ds')
    assert ds.classes == ['Dense', 'Diff'] and sorted(ds.colonies.source) == ['Dense/a.png', 'Diff/b.png']
    assert not len(ds.failures)


def test_links_to_class_folders(tmp_path):
    textured(tmp_path / 'elsewhere' / 'x.png', 0)
    (tmp_path / 'cells').mkdir()
    os.symlink(tmp_path / 'elsewhere', tmp_path / 'cells' / 'Dense')
    os.symlink(tmp_path / 'cells', tmp_path / 'link')
    for k, way in enumerate(('cells', 'link')):
        ds = import_folders(tmp_path / way, tmp_path / f'ds{k}')
        assert ds.colonies[['colony_id', 'source', 'label']].values.tolist() == [['Dense-x', 'Dense/x.png', 'Dense']]


def nfd(name):
    return unicodedata.normalize('NFD', name)


def test_names_are_compared_composed(tmp_path):
    for k, name in enumerate(('Café', nfd('Café'))):
        textured(tmp_path / 'cells' / name / f'{k}.png', k)
    assert import_folders(tmp_path / 'cells', tmp_path / 'ds').classes == ['Café']
    textured(tmp_path / nfd('Zürich.png'), 3)
    (tmp_path / 'list.csv').write_text('image,label\nZürich.png,Dense\n')
    ds = import_csv(tmp_path / 'list.csv', tmp_path / 'ds2')
    assert ds.colonies.index.tolist() == ['Zürich'] and (tmp_path / ds.colonies.source.iloc[0]).exists()


def test_tables_from_other_computers(tmp_path):
    textured(tmp_path / 'plate 1' / 'a.png', 0)
    cv2.imwrite(str(tmp_path / 'plate 1' / 'm.png'), np.full((50, 60), 255, np.uint8) * np.eye(50, 60, dtype=np.uint8))
    for k, (head, path) in enumerate(
        [('sep=;\n', r'plate 1\a.png'), ('"sep=;"\r\n', r'D:\x\plate 1\A.PNG'), ('', 'file:///C:/x/plate 1/a.png')]
    ):
        (tmp_path / f'{k}.csv').write_text(f'{head}image;label;mask\n{path};D;plate 1\\m.png\n', newline='')
        ds = import_csv(tmp_path / f'{k}.csv', tmp_path / f'ds{k}')
        assert ds.colonies[['source', 'group', 'area_px']].values.tolist() == [['plate 1/a.png', 'plate 1-a', 50]]
    with pytest.raises(InputError, match='list.csv, line 3: found nothing as y0'):
        listed(tmp_path, 'sep=,\nimage,label,y0,x0,y1,x1\nplate 1/a.png,D,,0,9,9\n')


VOC = (
    '<annotation><filename>{}</filename><object><name>{}</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>40</xmax>'
    '<ymax>30</ymax></bndbox></object></annotation>'
)


@pytest.mark.parametrize('layout', ['JPEGImages', 'images', ''])
def test_file_names_in_annotations(tmp_path, layout):
    names = dict(a='a', b=r'C:\data\b.jpg', c='c.JPG', d='/home/me/d.jpg', e='e.png', f='folder/f.jpg', g='other.jpg')
    for k, (stem, name) in enumerate(names.items()):
        textured(tmp_path / 'voc' / layout / f'{stem}.jpg', k)
        xml = tmp_path / 'voc' / ('Annotations' if layout else '') / f'{stem}.xml'
        xml.parent.mkdir(exist_ok=True)
        xml.write_text('<?xml version="1.0"?>\n' + VOC.format(name, 'Dense'))
    (tmp_path / 'voc' / 'Index.xml').write_text('<Plate><Well/></Plate>')
    ipb_import(tmp_path / 'voc', tmp_path / 'ds')
    ds = ColonyDataset(tmp_path / 'ds')
    assert len(ds) == 7 and not len(ds.failures)
    assert [Path(s).stem for s in ds.colonies.source] == list(names) == ds.colonies.group.tolist()


def test_boxes_keep_their_class_if_asked(voc, tmp_path, capsys):
    picture = voc / 'JPEGImages' / 'a.png'
    shutil.copytree(voc, tmp_path / 'voc')
    shutil.copy(picture, tmp_path / 'voc' / 'JPEGImages' / 'lost.png')
    ipb_import(tmp_path / 'voc', tmp_path / 'ds')
    said = capsys.readouterr().out
    assert '1 boxes became multi-label' in said and "by Otsu's threshold" in said
    assert (ColonyDataset(tmp_path / 'ds').colonies.label == 'multi-label').sum() == 1
    ipb_import(tmp_path / 'voc', tmp_path / 'kept', multi_label_overlap=1, box_masks='box')
    ds = ColonyDataset(tmp_path / 'kept')
    assert 'became multi-label' not in (said := capsys.readouterr().out) and "0 by Otsu's threshold" in said
    assert set(ds.colonies.label) == {'big', 'small'}
    box = ds.colonies
    assert (box.area_px == (box.y1 - box.y0) * (box.x1 - box.x0)).all()
    for kwargs, says in [
        (dict(box_masks='circle'), 'box_masks: found circle; expected otsu or box'),
        (dict(multi_label_overlap=2.0), 'multi_label_overlap: found 2.0; expected 0 to 1'),
    ]:
        with pytest.raises(InputError, match=says):
            ipb_import(tmp_path / 'voc', tmp_path / 'x', **kwargs)
    with pytest.raises(InputError, match='box_masks: found box for the kind folders'):
        ipb_import(tmp_path / 'voc', tmp_path / 'x', kind='folders', box_masks='box')


def rectangle(name, box, subtype=0):
    r = roifile.ImagejRoi()
    r.roitype, r.subtype, r.version, r.name = roifile.ROI_TYPE.RECT, roifile.ROI_SUBTYPE(subtype), 227, name
    r.left, r.top, r.right, r.bottom = box
    return r


def test_zips_hold_more_than_outlines(tmp_path):
    textured(tmp_path / 'raw' / 'w1.png', 0)
    curve = [0, 30, 10, 3, 41, 10, 50, 19, 50, 30, 3, 50, 41, 41, 50, 30, 50, 2, 10, 50, 10, 30, 1, 10, 10, 4]
    curved = rectangle('Diff', (10, 10, 50, 50))
    curved.multi_coordinates, curved.shape_roi_size = np.array(curve, np.float32), len(curve)
    unknown = rectangle('odd', (10, 10, 50, 50))
    unknown.multi_coordinates, unknown.shape_roi_size = np.array([0, 1, 1, 9, 2, 2], np.float32), 6
    with warnings.catch_warnings(action='ignore'), zipfile.ZipFile(tmp_path / 'raw' / 'w1_RoiSet.zip', 'w') as z:
        z.writestr('RoiSet/', b'')
        z.writestr('__MACOSX/RoiSet/._Dense-1.roi', b'\0\5\x16\7' + bytes(100))
        z.writestr('Results.csv', b'Area\n1\n')
        for r in (
            rectangle('Dense-1', (5, 5, 25, 25)),
            rectangle('day 3', (5, 5, 50, 18), 1),
            rectangle('overlay', (0, 0, 60, 50), 4),
            rectangle('Dense-2', (30, 5, 50, 25)),
            curved,
            unknown,
        ):
            z.writestr('same name.roi', r.tobytes())
        z.writestr('empty.roi', b'')
    ipb_import(tmp_path / 'raw', tmp_path / 'ds')
    ds = ColonyDataset(tmp_path / 'ds')
    assert ds.colonies[['colony_id', 'label']].values.tolist() == [
        ['w1-001', 'Dense'],
        ['w1-004', 'Dense'],
        ['w1-005', 'Diff'],
    ]
    assert ds.colonies[BOX].values.tolist()[1] == [5, 30, 25, 50]
    assert ds.colonies.area_px.iloc[2] == pytest.approx(40 * 40 - 2 * (1 - np.pi / 4) * 20**2 - 20**2 / 6, rel=0.1)
    assert ds.failures.item.tolist() == ['ROI 2 (day 3)', 'ROI 3 (overlay)', 'ROI 6 (same name)', 'ROI 7 (empty)']
    with zipfile.ZipFile(tmp_path / 'raw' / 'w1_RoiSet.zip', 'w') as z:
        z.writestr('Results.csv', b'Area\n1\n')
    with pytest.raises(InputError, match='found no .roi in it'):
        ipb_import(tmp_path / 'raw', tmp_path / 'x')


def test_many_files_of_which_some_are_bad(tmp_path):
    cells = tmp_path / 'cells' / 'A'
    cells.mkdir(parents=True)
    good = cv2.imencode('.png', np.random.default_rng(0).integers(0, 255, (12, 12), np.uint8))[1].tobytes()
    for k in range(400):
        im = np.random.default_rng(k).integers(0, 255, (12, 12), np.uint8)
        cv2.imwrite(str(cells / f'{k:03d}.png'), im)
        if k % 40 == 0:
            (cells / f'{k:03d}.png').write_bytes(good[: 10 + k // 4])
    with pytest.raises(InputError, match='10 files that could not be read'):
        ipb_import(tmp_path / 'cells', tmp_path / 'ds')
    ds = ColonyDataset(tmp_path / 'ds')
    assert len(ds) == 390 and len(ds.failures) == 10
