"""Stains and markers from the image files to the predictions of a student."""

import zipfile
from functools import cache

import numpy as np
import onnx
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from ipb_nb.channels import Pictures, find_channel, to_show
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.crop import to_planes
from ipb_nb.decision import probabilities
from ipb_nb.experiment import train
from ipb_nb.export import export_student
from ipb_nb.importers import import_csv
from ipb_nb.inspect import MisclassifiedExplorer
from ipb_nb.method import METHODS
from ipb_nb.predict import predict
from ipb_nb.run import read_run
from ipb_nb.split import Split, save_split, similar_pairs
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


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "A function (kind): a list of images, and how they are imported."

    @cache
    def of_kind(kind):
        folder, rng, rows = tmp_path_factory.mktemp(kind), np.random.default_rng(0), []
        deep = kind == 'markers'
        for k in range(2 * N):
            planes, name = marked_planes(rng, k % 2, 4 if deep else 3, deep), f'c{k:03d}.{"ome.tif" if deep else "png"}'
            if deep:
                tifffile.imwrite(folder / name, planes, metadata=dict(axes='CYX', Channel=dict(Name=MARKERS)))
            else:
                Image.fromarray(planes.transpose(1, 2, 0)).save(folder / name)
            rows.append(dict(image=name, label=f'class {k % 2}', y0=5, x0=5, y1=35, x1=35))
        pd.DataFrame(rows).to_csv(folder / 'list.csv', index=False)
        return folder / 'list.csv', dict(channels=','.join(MARKERS), depth=16) if deep else dict(channels='rgb')

    return of_kind


LENGTH = dict(epochs=1, pretrain_epochs=10, finetune=5, steps=12, batch_size=8, lr=0.02, ema=0.0)
LONG = dict(method='supervised', epochs=2, steps=200, batch_size=24, lr=0.05, ema=0.0)  # (enough for any seed)


def trained(listed, out, length=LENGTH, importing=None, **how):
    "A student of the images, and the dataset it was trained on."
    ds = import_csv(listed, out / 'cells', margin=4, box_masks='box', **importing or {})
    save_split(ds, labeled=0.4, test=0.3, folds=1, by='random', valid=0.1)
    cfg = ExperimentConfig(scales='32,16', threads=1, **length, **how)
    return ds, train(cfg, ds.path, out / 'run')


@pytest.mark.parametrize('kind', ['stain', 'markers'])
def test_only_a_marker_tells_the_classes_apart(kind, images, tmp_path):
    listed, how = images(kind)
    ds, run = trained(listed, tmp_path, importing=how)
    channels, depth = (MARKERS, 16) if 'depth' in how else (STAIN, 8)
    for file in (tmp_path / 'cells' / 'dataset.json', run / 'model.json', run / 'run.json'):
        info = read_json(file)
        assert (info['channels'], info['depth']) == (channels, depth), file
    assert read_run(run).metrics['student']['macro_tpr'] == 1
    assert ds.limits is ds.limits  # (read from the pictures once)

    predict(run, ds.path, tmp_path / 'found', unscaled=True)
    found = pd.read_csv(tmp_path / 'found' / 'colonies.csv').set_index('colony_id').predicted
    assert (found == ds.colonies.label[found.index]).mean() > 0.95
    assert next((tmp_path / 'found' / 'overlays').glob('*.jpg')).stat().st_size

    with pytest.raises(InputError, match='expected'):
        load_student(run).look(np.zeros((2, 32, 32), np.uint8))

    explorer = MisclassifiedExplorer(run)
    explorer.act('cell', '0,0')
    before = explorer.pane_gallery, explorer.pane_detail
    explorer.act('channel', channels[1])
    assert explorer.pane_head.count('aria-pressed="false"') == 1
    assert before[0] != explorer.pane_gallery and before[1] != explorer.pane_detail

    export_student(run, tmp_path / 'onnx', format='onnx')  # (compares with the student)
    model = onnx.load(tmp_path / 'onnx' / 'student.onnx')
    assert {p.key: p.value for p in model.metadata_props} == dict(channels=','.join(channels), depth=str(depth))
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == len(channels)
    export_student(run, tmp_path / 'for the zoo', format='bioimageio', authors=['A. B'])
    with zipfile.ZipFile(tmp_path / 'for the zoo' / 'package.zip') as package:
        zoo = yaml.safe_load(package.read('rdf.yaml'))
    assert zoo['inputs'][0]['axes'][1]['channel_names'] == channels and 'phase-contrast' not in zoo['tags']
    assert zoo['description'].startswith(f'Classes of colonies in {", ".join(channels)} of {depth} bits: ')


def test_dropout_lets_a_student_do_without_a_channel(images, tmp_path):
    "The last two markers tell the classes apart, each alone; without dropout their lack is refused."
    listed, how = images('markers')
    _, run = trained(listed, tmp_path, LONG, importing=how, channel_dropout=0.4)
    assert read_json(run / 'model.json')['channel_dropout'] == 0.4
    how = dict(channels='SOX2,phase,DAPI', depth=16)  # (another order)
    some = import_csv(listed, tmp_path / 'some', margin=4, box_masks='box', **how)
    predict(run, some.path, tmp_path / 'found', unscaled=True)
    found = pd.read_csv(tmp_path / 'found' / 'colonies.csv').set_index('colony_id').predicted
    assert (found == some.colonies.label[found.index]).mean() > 0.9
    assert any('The images have no OCT4' in o for o in read_json(tmp_path / 'found' / 'prediction.json')['departures'])

    student = load_student(run)
    patches = np.stack([some.colony(i).cut((4, 4, 36, 36)) for i in some.colonies.index[:5]])
    full = np.stack([patches[..., 1], patches[..., 2], patches[..., 0], patches[..., 0]], -1)  # (any OCT4)
    one = student.look(patches, channels=some.channels)[0]
    norm = student.info['normalisation']
    x = (to_planes(full, 4) / 65535 - np.reshape(norm['mean'], (4, 1, 1))) / np.reshape(norm['std'], (4, 1, 1))
    x[:, 2] = 0
    with torch.no_grad():
        p = probabilities(student.net, torch.tensor(x).float(), False, student.trust['temperature'], student.bias)[0]
    np.testing.assert_allclose(one, p, atol=1e-4)

    info = read_json(run / 'model.json')
    del info['channel_dropout']
    write_json(info, run / 'model.json')
    with pytest.raises(InputError, match='without OCT4; expected phase.*trained with --channel_dropout'):
        predict(run, some.path, tmp_path / 'refused', unscaled=True)
    assert not (tmp_path / 'refused' / 'colonies.csv').exists()


def test_dropout_needs_channels_and_a_network(images, tmp_path):
    grey = import_csv(images('stain')[0], tmp_path / 'grey', margin=4, box_masks='box')
    save_split(grey, labeled=0.4, test=0.3, folds=1, by='random')
    with pytest.raises(InputError, match='channel_dropout: found 0.2 for one channel, grey'):
        train(ExperimentConfig(scales='32,16', channel_dropout=0.2), grey.path, tmp_path / 'run')
    for fields in (dict(method='forest', channel_dropout=0.2), dict(channel_dropout=1.0)):
        with pytest.raises(InputError, match='channel_dropout'):
            ExperimentConfig(**fields)


SHORT = dict(epochs=1, pretrain_epochs=1, finetune=0, steps=4, batch_size=8, lr=0.01, ema=0.0, generations=1)


DROPS = ('fixmatch', 'simclr', 'simtriplet')  # the other kinds of views
OF_STAIN = [(method, 'stain') for method in sorted(set(METHODS) - {'mpl'})]


@pytest.mark.parametrize('method, kind', [*OF_STAIN, ('forest', 'markers'), ('simclr', 'markers')])
def test_every_method_learns_from_channels(method, kind, images, tmp_path):
    listed, how = images(kind)
    dropout = 0.3 if method in DROPS else 0.0
    ds, run = trained(listed, tmp_path, SHORT, importing=how, method=method, channel_dropout=dropout)
    parts = Split(ds).fold(0)
    assert {*read_run(run).predictions.colony_id} == {*parts.index[parts.part == 'T']}


def test_a_student_of_other_channels_is_no_beginning(images, tmp_path):
    listed, how = images('stain')
    _, run = trained(listed, tmp_path, SHORT, importing=how)
    grey = import_csv(listed, tmp_path / 'grey', margin=4, box_masks='box')
    save_split(grey, labeled=0.4, test=0.3, folds=1, by='random')
    with pytest.raises(InputError, match='red, green, blue of 8 bits'):
        train(ExperimentConfig(init=str(run), threads=1), grey.path, tmp_path / 'next')


def test_grey_cannot_tell_them_apart(tmp_path):
    "The same colonies in one channel that does not follow the class."
    rng, rows = np.random.default_rng(0), []
    for k in range(2 * N):
        Image.fromarray(marked_planes(rng, k % 2, 3, False).transpose(1, 2, 0)).save(tmp_path / f'c{k:03d}.png')
        rows.append(dict(image=f'c{k:03d}.png', label=f'class {k % 2}', y0=5, x0=5, y1=35, x1=35))
    pd.DataFrame(rows).to_csv(tmp_path / 'list.csv', index=False)
    ds, run = trained(tmp_path / 'list.csv', tmp_path, importing=dict(channels='red'))
    assert (ds.channels, ds.depth, ds.info['format_version']) == (('red',), 8, 3)
    assert read_run(run).metrics['student']['macro_tpr'] < 0.85

    other = import_csv(tmp_path / 'list.csv', tmp_path / 'other', margin=4, box_masks='box', channels='rgb')
    with pytest.raises(InputError, match='found red, green, blue of 8 bits; expected red of 8 bits'):
        predict(run, other.path, tmp_path / 'found', unscaled=True)

    with pytest.raises(InputError, match='found green of 8 bits; expected red of 8 bits'):
        import_csv(tmp_path / 'list.csv', ds.path, margin=4, channels='green', add=True)


def deep_image(path, n, rng, **more):
    planes = (rng.random((n, SIDE, SIDE)) * 3000).astype(np.uint16) + 8000 * np.arange(n, dtype=np.uint16)[
        :, None, None
    ]
    tifffile.imwrite(path, planes, metadata=dict(axes='CYX'), **more)
    return path.name


def test_six_channels_are_compared_scaled_and_predicted(tmp_path):
    rng = np.random.default_rng(0)
    rows = [dict(image=deep_image(tmp_path / f'{k}.tif', 6, rng), label=f'class {k % 2}') for k in range(20)]
    pd.DataFrame(rows).to_csv(tmp_path / 'list.csv', index=False)
    ds, run = trained(
        tmp_path / 'list.csv', tmp_path, SHORT, importing=dict(channels='0,1,2,3,4,5', depth=16, pixel_size=0.65)
    )
    assert similar_pairs(ds, ds.colonies.index).empty  # (noise, over levels that all pictures share)
    ds.info['pixel_size'] = 0.8
    write_json(ds.info, ds.path / 'dataset.json')
    predict(run, ds.path, tmp_path / 'found')
    assert len(pd.read_csv(tmp_path / 'found' / 'colonies.csv')) == 20


def test_files_of_other_layouts(tmp_path, monkeypatch):
    rng, read = np.random.default_rng(0), Pictures('0,1', depth=16).read
    deep_image(tmp_path / 'plain.tif', 2, rng)
    deep_image(tmp_path / 'inverted.tif', 2, np.random.default_rng(0), photometric='miniswhite')
    np.testing.assert_array_equal(read(tmp_path / 'inverted.tif'), 65535 - read(tmp_path / 'plain.tif'))
    monkeypatch.setenv('IPB_MAX_PIXELS', '1000')
    with pytest.raises(InputError, match='plain.tif: found 40 × 40 pixels; expected at most 1000 pixels'):
        read(tmp_path / 'plain.tif')


def test_a_channel_that_another_file_holds_is_not_black(tmp_path):
    "As microscopes write them: one OME-XML for two files, each with one channel."
    uuids = ['urn:uuid:00000000-0000-0000-0000-00000000000' + str(k) for k in range(2)]
    data = ''.join(
        f'<TiffData IFD="0" FirstC="{k}" PlaneCount="1"><UUID FileName="{k}.ome.tif">{u}</UUID></TiffData>'
        for k, u in enumerate(uuids)
    )
    for k, uuid in enumerate(uuids):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{SIDE}" '
            f'SizeY="{SIDE}" SizeC="2" SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" Name="phase"/>'
            f'<Channel ID="Channel:0:1" Name="DAPI"/>{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            tmp_path / f'{k}.ome.tif', np.full((SIDE, SIDE), 200, np.uint8), description=xml, metadata=None
        )
    for k in range(2):
        with pytest.raises(InputError, match='found a picture of one channel; expected a channel phase'):
            Pictures('phase,DAPI').read(tmp_path / f'{k}.ome.tif')


def test_a_dark_photograph_of_twelve_bits_is_shown_bright():
    im = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE, 3)).astype(np.uint16)
    im[..., 0] //= 2
    shown = to_show(im, STAIN)
    assert shown.max() > 250 and abs(shown[..., 0].mean() / shown[..., 1].mean() - 0.5) < 0.02


def test_a_name_of_two_channels_is_none():
    assert find_channel('1', ['DAPI', 'DAPI'], 'a.tif') == 1
    with pytest.raises(InputError, match='several channels of this name'):
        find_channel('dapi', ['DAPI', 'phase', 'DAPI'], 'a.tif')
