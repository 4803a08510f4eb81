"Files that others made: of the wrong shape, too large, no files at all, or made to do harm."

import io
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import roifile
import safetensors.numpy
import tifffile
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ipb_nb import records
from ipb_nb.core import InputError, allow_pixels, read_json, read_pixels, read_table, write_json, write_png
from ipb_nb.checkpoint import Checkpoints, plot_live
from ipb_nb.dataset import FORMAT_VERSION, ColonyDataset
from ipb_nb.frames import check_frames, list_frames
from ipb_nb.importers import import_folders, read_voc
from ipb_nb.layouts import by_layout
from ipb_nb.masks import read_mask
from ipb_nb.outlines import roi_entries
from ipb_nb.records import Record, check_record
from ipb_nb.simclr import plot_embedding
from ipb_nb.split import Split, save_split
from ipb_nb.student import load_student
from ipb_nb.sweep import parse_yaml
from ipb_nb.toy import toy_dataset
from ipb_nb.weights import read_weights
from ipb_nb.worklist import _remark, assign

SHAPES = [o for o in vars(records).values() if isinstance(o, type) and issubclass(o, Record)]
GREY = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)


def declared_png(width, height):
    "A PNG that declares its size and has no pixels."

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


@pytest.fixture
def folders(tmp_path):
    "A picture of each of two classes."
    for name, im in dict(a=GREY, b=GREY.T).items():
        write_png(im, tmp_path / 'classes' / name / f'{name}.png')
    return tmp_path / 'classes'


@pytest.mark.skipif(os.name == 'nt', reason='pipes, devices and names of bytes are not on Windows')
def test_bad_files_are_lines_and_the_rest_is_imported(folders, tmp_path):
    a = folders / 'a'
    (a / 'large.png').write_bytes(declared_png(30_000, 30_000))
    tifffile.imwrite(a / 'complex.tif', GREY.astype(np.complex64))
    tifffile.imwrite(a / 'deep.tif', np.stack([GREY.T] * 3, -1).astype(np.int16), photometric='rgb')
    os.mkfifo(a / 'pipe.png')
    os.symlink('/dev/zero', a / 'zero.png')
    os.symlink('../b/b.png', a / 'link.png')
    os.symlink(folders / 'b', a / 'other')
    os.symlink(folders, a / 'loop')
    os.mkdir(os.fsencode(folders) + b'/c\xff')
    write_png(GREY[::-1], folders / 'c.png')
    os.rename(folders / 'c.png', os.fsencode(folders) + b'/c\xff/c.png')
    ds = import_folders(folders, tmp_path / 'ds')
    assert list(ds.colonies.source) == ['a/a.png', 'a/deep.tif', 'b/b.png']
    reasons = ds.failures.set_index('source').reason
    assert '30000 × 30000 pixels; expected at most 268435456' in reasons['a/large.png']
    assert 'complex64 pixels' in reasons['a/complex.tif'] and 'name that is not UTF-8' in reasons['c\\udcff/c.png']
    assert 'a pipe or a device' in reasons['a/pipe.png'] and 'a pipe or a device' in reasons['a/zero.png']
    assert 'class folder b' in reasons['a/link.png'] and 'class folder b' in reasons['a/other/b.png']
    assert len(reasons) == 7


def test_more_pixels_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv('IPB_MAX_PIXELS', '')
    tifffile.imwrite(tmp_path / 'a.tif', GREY)
    write_png(GREY, tmp_path / 'a.png')
    allow_pixels(1599)
    for name in ('a.tif', 'a.png'):
        with pytest.raises(InputError, match='found 40 × 40 pixels; expected at most 1599'):
            read_pixels(tmp_path / name)
    assert not len(list_frames(tmp_path)[0])
    allow_pixels(1600)
    assert len(list_frames(tmp_path)[0]) == 1 and read_pixels(tmp_path / 'a.tif').shape == (40, 40)


def test_an_encoding_that_nobody_knows(tmp_path):
    (tmp_path / 'a.xml').write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    with pytest.raises(InputError, match='XML that cannot be read'):
        read_voc(tmp_path / 'a.xml')


@pytest.mark.parametrize('path', ['a\0b', '.'])
def test_paths_that_are_no_files(path):
    for read in (read_json, read_pixels, lambda p: read_table(p, []), lambda p: read_mask(p, (4, 4)), roi_entries):
        with pytest.raises(InputError):
            read(path)


@pytest.mark.parametrize(
    'name', ['20250131093000', '0f8fad5bd9cb469fa16570867728950e', '9' * 20, '20250131', '20990131']
)
def test_dates_and_identifiers_are_no_frame_numbers(tmp_path, name):
    for k, file in enumerate(['A1_0001', 'A1_0002', f'A1_{name}']):
        write_png(np.roll(GREY, k), tmp_path / f'{file}.png')
    df, failures, bad = list_frames(tmp_path, pixel_size=1.0)
    assert len(df) == 3 and df.frame.max() < 2**31 and not failures
    assert sum(map(len, check_frames(df, bad))) < 1000


def test_a_pattern_that_takes_a_date_as_frame(tmp_path):
    for name in ('A1_20250131093000', 'A1_7'):
        write_png(GREY, tmp_path / f'{name}.png')
    df, failures, _ = list_frames(tmp_path, pattern=r'(?P<group>A1)_(?P<frame>\d+)')
    assert list(df.frame) == [7] and 'whole numbers below 10⁹' in failures[0]['reason']
    assert not by_layout(['x_t20250131093000_c1.tif'], 'fiji')[0]
    read, _ = by_layout(['p_A1_1_2025y13m01d_09h30m.tif'], 'incucyte')
    assert read['p_A1_1_2025y13m01d_09h30m.tif'].get('time_h') is None


@pytest.mark.parametrize(
    'text, says',
    [
        ('a,b\n"1",' + 'x' * 131_073, 'line 2: found field larger than field limit .131072.'),
        ('a,b\n1,' + 'x' * 131_073, 'line 2: found field larger than field limit .131072.'),
        (','.join(map(str, range(500_000))), 'line 1: found 500000 columns; expected at most 10000'),
    ],
)
def test_tables_that_are_none(tmp_path, text, says):
    (tmp_path / 'a.csv').write_text(text + '\n')
    with pytest.raises(InputError, match=says):
        read_table(tmp_path / 'a.csv', ['a'])


def test_a_name_with_dollars_is_no_formula(tmp_path):
    ds = toy_dataset(tmp_path / 'ds', (8, 8, 8), classes=['$x_{', '$^$', 'c'], labeled=0.5, test=0.3)
    for colony in ds.colonies.index[:2]:
        for by, name in (('ana', ds.classes[0]), ('ben', ds.classes[1])):
            ds.annotate(colony, name, by=by)
    history = pd.DataFrame(dict(stage='student', epoch=[0, 1], train_loss=1.0, valid_loss=1.0, macro_tpr=0.5))
    features = torch.randn(9, 4), torch.arange(9) % 2
    plt.close('all')
    ds.plot_summary(), ds.plot_agreement(), ds.show(2), Split(ds).plot()
    plot_live(history.assign(**{f'tpr_{c}': 0.5 for c in ds.classes}))
    plot_embedding({'a': features}, ds.classes)
    assert len(plt.get_fignums()) == 6
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()  # a formula that cannot be read would stop here
    plt.close('all')


def test_the_axes_of_others_keep_their_formulas():
    code = (
        'import importlib, pkgutil, fastai.vision.all, seaborn, ipb_nb, matplotlib as m; own = dict(m.rcParams)\n'
        'for o in pkgutil.iter_modules(ipb_nb.__path__): importlib.import_module(f"ipb_nb.{o.name}")\n'
        'print([k for k, v in m.rcParams.items() if k != "backend" and v != own[k]])'
    )
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == '[]'


def test_a_model_that_would_take_all_memory(tmp_path):
    info = dict(arch='hrnet', width=1.0, hidden=0, scales=[64], small='context', classes=['a', 'b'], margin=9)
    info |= dict(pixel_size=None, normalisation=dict(mean=0.4, std=0.1), detection=None, trust={})
    info |= dict(confusion=[[1, 0], [0, 1]])
    odd = [dict(width=1e9), dict(hidden=10**12), dict(scales=[10**6]), dict(classes=['x'] * 10**6), dict(margin=None)]
    for change in odd:
        write_json(info | change, tmp_path / 'model.json')
        with pytest.raises(InputError, match=rf'model.json, {[*change][0]}(\[0\])?: found'):
            load_student(tmp_path)


OLDER = {  # what files said that were written first
    'DatasetFile': dict(classes=['a'], margin=0, pixel_size=None, raw_root=None, imports=[{}], format_version=2),
    'SplitFile': dict(by='published', drawn='2025-01-31', test_sha256='0f', reached=[], left_out={}),
    'RunFile': dict(name='HRNet', state='done', config=dict(fold=0), seconds=312.4, error=None, files={'a.csv': 3}),
    'SweepFile': dict(grid='quick.yaml', runs=dict(a={})),
    'PredictionFile': dict(state='running', images='../raw', pixel_size=None),
    'ExperimentFile': dict(state='done', parameters={}, classes=['a'], treatment={}, empty=['P1-A1']),
    'LoopFile': dict(version=1, share=0.25, seed=0, held_aside=['a']),
    'WorklistFile': dict(n='60', among='all'),
    'DemoFile': dict(made=['colonies']),
}


@pytest.mark.parametrize('name', OLDER)
def test_older_files_are_read_and_those_of_the_future_are_not(name):
    shape, content = getattr(records, name), OLDER[name]
    assert check_record(content, 'file.json', shape) is content
    with pytest.raises(InputError, match='file.json, format_version: found 99; .* update ipb_nb'):
        check_record(content | dict(format_version=99), 'file.json', shape)
    for other in ([], None, 'text', 3):
        with pytest.raises(InputError, match='file.json: found .*; expected names with values'):
            check_record(other, 'file.json', shape)


def test_new_files_say_their_version(dataset, tmp_path):
    ds = ColonyDataset(shutil.copytree(dataset, tmp_path / 'ds'))
    save_split(ds, 'new', labeled=0.25, test=0.25, folds=2)
    assign(ds, ['ana', 'ben'], n=10)
    new = [ds.path / 'splits' / 'new.json', ds.path / 'worklists' / 'ana.json', ds.path / 'dataset.json']
    assert [read_json(f)['format_version'] for f in new] == [1, 1, FORMAT_VERSION]
    for f in new[:2]:  # older ones do not, and open
        write_json({k: v for k, v in read_json(f).items() if k != 'format_version'}, f)
    assert Split(ds, 'new').folds == 2 and _remark(ds, 'ana', dict(seed=0)) == ''


def test_a_state_of_another_shape_is_passed_over(tmp_path, capsys):
    store = Checkpoints(tmp_path / 'checkpoint')
    store.save(dict(w=torch.ones(3)), epoch=0)
    store.save(dict(w=torch.ones(3)), epoch=1)
    newest = tmp_path / 'checkpoint' / '00002.json'
    good = read_json(newest)
    assert good['format_version'] == 1
    for odd, says in [([], 'names with values'), (good | dict(state=3), 'state'), (good | dict(sha256=None), 'sha256')]:
        write_json(odd, newest)
        assert store.load()['epoch'] == 0 and says in capsys.readouterr().err
    write_json({k: v for k, v in good.items() if k != 'format_version'}, newest)  # of an older version
    assert store.load()['epoch'] == 1


def quietly(read, *args):
    "Any content is read, or an `InputError`, within 20 seconds of the processor (however busy it is)."
    start = time.process_time()
    try:
        return read(*args)
    except InputError:
        return None
    finally:
        assert time.process_time() - start < 20, args


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(max_size=5), o, max_size=3),
    max_leaves=8,
)
FUZZ = int(os.environ.get('IPB_FUZZ', 0))  # new examples of each kind, of benchmarks/long_fuzz.py
QUICK = settings(
    max_examples=FUZZ or 60,
    derandomize=not FUZZ,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)


@QUICK
@given(st.sampled_from(SHAPES), ANY_JSON, st.data())
def test_json_of_any_shape(shape, content, data):
    quietly(check_record, content, 'file.json', shape)
    fields = data.draw(st.dictionaries(st.sampled_from([*shape.model_fields]), ANY_JSON))
    quietly(check_record, fields, 'file.json', shape)


@QUICK
@given(st.text(alphabet='ab:[]{}&*!|>-?#"\' \n0129.,<'))
@example('[' * 5000)
@example('a: 2001-99-99')
@example('{[1]: 2}')
def test_yaml_of_any_kind(text):
    quietly(parse_yaml, text, 'grid.yaml')


@QUICK
@given(st.binary(max_size=200))
@example(b'[' * 100_000)
@example(b'{"a":' + b'1' * 5000 + b'}')
def test_tables_and_json_of_any_bytes(tmp_path_factory, data):
    f = tmp_path_factory.getbasetemp() / 'any'
    f.write_bytes(data)
    quietly(read_table, f, ['a'])
    quietly(read_json, f)


def whole_files():
    "Good files of every kind, to be damaged."
    out = {f'.{kind}': cv2.imencode(f'.{kind}', GREY)[1].tobytes() for kind in ('png', 'jpg', 'bmp')}
    for name, kw in dict(
        plain={}, zlib=dict(compression='zlib'), ome=dict(ome=True), tiles=dict(tile=(16, 16))
    ).items():
        b = io.BytesIO()
        tifffile.imwrite(b, GREY, **kw)
        out[f'.{name}.tif'] = b.getvalue()
    b = io.BytesIO()
    np.save(b, GREY)
    out['.npy'] = b.getvalue()
    roi = roifile.ImagejRoi.frompoints([[1, 1], [9, 1], [9, 9]]).tobytes()
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z:
        z.writestr('1.roi', roi)
    weights = safetensors.numpy.save(dict(weight=GREY))
    return out | {'.roi': roi, '.zip': b.getvalue(), '.txt': b'0 1\n' * 20, '.safetensors': weights}


WHOLE = whole_files()


@QUICK
@given(st.sampled_from([*WHOLE]), st.integers(0, 2**32))
@example('.npy', 84211758)  # (a header that is no Python)
@example('.plain.tif', 3726)  # (no picture is left)
def test_pictures_masks_and_rois_with_any_bytes_changed(tmp_path_factory, kind, seed):
    rng, data = random.Random(seed), bytearray(WHOLE[kind])
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
    f = tmp_path_factory.getbasetemp() / f'damaged{kind}'
    f.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
    if kind in ('.roi', '.zip'):
        quietly(roi_entries, f)
    elif kind == '.safetensors':
        (f.parent / 'damaged').mkdir(exist_ok=True)
        shutil.copy(f, f.parent / 'damaged' / 'student.safetensors')
        quietly(read_weights, f.parent / 'damaged', dict(weight=torch.from_numpy(GREY)))
    else:
        quietly(read_mask, f, GREY.shape)
    if kind.endswith(('png', 'jpg', 'bmp', 'tif')):
        quietly(read_pixels, f)
        quietly(list_frames, f)
