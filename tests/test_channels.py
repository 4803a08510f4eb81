"""Stains and markers from the image files to the predictions of a student."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json
from ipb_nb.experiment import train
from ipb_nb.importers import import_csv
from ipb_nb.predict import predict
from ipb_nb.run import read_run
from ipb_nb.split import save_split
from ipb_nb.student import load_student

STAIN, MARKERS = ['red', 'green', 'blue'], ['phase', 'DAPI', 'OCT4', 'SOX2']
pytestmark = pytest.mark.slow
SIDE, N = 40, 24  # px; images of each class


def marked_planes(rng, brightest, n, deep):
    "Colonies that are alike but for one marker, of which all levels occur in both classes."
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.hypot(y - SIDE / 2, x - SIDE / 2) < 15
    low, high = (0.35, 0.65)
    levels = np.full(n, low)
    levels[-1 - brightest] = high  # either the last or the last but one
    planes = levels[:, None, None] * inside + 0.05 * rng.random((n, SIDE, SIDE))
    return (planes * (6000 if deep else 255)).astype(np.uint16 if deep else np.uint8)


@pytest.fixture(scope='module', params=['stain', 'markers'])
def images(request, tmp_path_factory):
    "A list of images, and how they are imported."
    folder, rng, rows = tmp_path_factory.mktemp(request.param), np.random.default_rng(0), []
    deep = request.param == 'markers'
    for k in range(2 * N):
        planes, name = marked_planes(rng, k % 2, 4 if deep else 3, deep), f'c{k:03d}.{"ome.tif" if deep else "png"}'
        if deep:
            tifffile.imwrite(folder / name, planes, metadata=dict(axes='CYX', Channel=dict(Name=MARKERS)))
        else:
            Image.fromarray(planes.transpose(1, 2, 0)).save(folder / name)
        rows.append(dict(image=name, label=f'class {k % 2}', y0=5, x0=5, y1=35, x1=35))
    pd.DataFrame(rows).to_csv(folder / 'list.csv', index=False)
    return folder / 'list.csv', dict(channels=','.join(MARKERS), depth=16) if deep else dict(channels='rgb')


def trained(listed, out, **how):
    "A student of the images, and the dataset it was trained on."
    ds = import_csv(listed, out / 'cells', margin=4, box_masks='box', **how)
    save_split(ds, labeled=0.4, test=0.3, folds=1, by='random', valid=0.1)
    cfg = ExperimentConfig(
        'quick', method='mpl', arch='hrnet', width=0.1, scales='32,16', pretrained=False, freeze=False
    )
    for name, value in dict(
        epochs=2, pretrain_epochs=30, finetune=10, steps=20, batch_size=8, threads=1, lr=0.01, ema=0.0, test_patches=1
    ).items():
        setattr(cfg, name, value)
    return ds, train(cfg, ds.path, out / 'run')


def test_only_a_marker_tells_the_classes_apart(images, tmp_path):
    listed, how = images
    ds, run = trained(listed, tmp_path, **how)
    channels, depth = (MARKERS, 16) if 'depth' in how else (STAIN, 8)
    for file in (tmp_path / 'cells' / 'dataset.json', run / 'model.json', run / 'run.json'):
        info = read_json(file)
        assert (info['channels'], info['depth']) == (channels, depth), file
    assert read_run(run).metrics['student']['macro_tpr'] == 1

    predict(run, ds.path, tmp_path / 'found', unscaled=True)
    found = pd.read_csv(tmp_path / 'found' / 'colonies.csv').set_index('colony_id').predicted
    assert (found == ds.colonies.label[found.index]).mean() > 0.95
    assert next((tmp_path / 'found' / 'overlays').glob('*.jpg')).stat().st_size

    with pytest.raises(InputError, match='expected'):
        load_student(run).look(np.zeros((2, 32, 32), np.uint8))


def test_grey_cannot_tell_them_apart(tmp_path):
    "The same colonies in one channel that does not follow the class."
    rng, rows = np.random.default_rng(0), []
    for k in range(2 * N):
        Image.fromarray(marked_planes(rng, k % 2, 3, False).transpose(1, 2, 0)).save(tmp_path / f'c{k:03d}.png')
        rows.append(dict(image=f'c{k:03d}.png', label=f'class {k % 2}', y0=5, x0=5, y1=35, x1=35))
    pd.DataFrame(rows).to_csv(tmp_path / 'list.csv', index=False)
    ds, run = trained(tmp_path / 'list.csv', tmp_path, channels='red')
    assert (ds.channels, ds.depth, ds.info['format_version']) == (('grey',), 8, 2)
    assert read_run(run).metrics['student']['macro_tpr'] < 0.85

    other = import_csv(tmp_path / 'list.csv', tmp_path / 'other', margin=4, box_masks='box', channels='rgb')
    with pytest.raises(InputError, match='found red, green, blue of 8 bits; expected 8-bit grey'):
        predict(run, other.path, tmp_path / 'found', unscaled=True)
