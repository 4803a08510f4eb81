"""Stains and markers from the files of a microscope: frames, detection, and prediction on new ones."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from ipb_nb.channels import Pictures
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, read_table, write_csv, write_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.detect import detect_dataset
from ipb_nb.experiment import train
from ipb_nb.frames import FILES, check_frames, dataset_picture, list_frames, searched_channel
from ipb_nb.importers import import_folders, import_masks, ipb_import
from ipb_nb.panes import surroundings
from ipb_nb.predict import _other_channel, predict
from ipb_nb.preview import ipb_detect
from ipb_nb.reader import kept_pixels, picture_frames, read_frame, searched_pixels
from ipb_nb.split import save_split
from ipb_nb.tuning import FramePanes

MARKERS = ['phase', 'DAPI', 'OCT4', 'SOX2']
ALL = dict(channels=','.join(MARKERS), depth=16)
OME = dict(PhysicalSizeX=0.65, PhysicalSizeXUnit='µm', PhysicalSizeY=0.65, PhysicalSizeYUnit='µm')
PLACES = (70, 80), (180, 210)


def cells(seed, height=250, width=290):
    "Two colonies, rough in phase contrast: the first has OCT4, the second SOX2. uint16 (4, height, width)."
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:height, :width]
    out = 800 + rng.normal(0, 20, (4, height, width))
    for marker, place in zip((2, 3), PLACES):
        inside = np.hypot(y - place[0], x - place[1]) < 42
        out[0] += inside * rng.normal(0, 900, inside.shape)
        out[1] += inside * 1500
        out[marker] += inside * 6000
    return out.clip(0, 65535).astype(np.uint16)


def write_ome(path, planes, names=MARKERS, axes='CYX'):
    tifffile.imwrite(path, planes, metadata=dict(axes=axes, Channel=dict(Name=names), **OME))


@pytest.fixture
def raw(tmp_path):
    "A folder of four OME-TIFFs of two wells."
    (tmp_path / 'raw').mkdir()
    for k in range(4):
        write_ome(tmp_path / 'raw' / f'{"AB"[k // 2]}_{k % 2}.ome.tif', cells(k))
    return tmp_path / 'raw'


def well_frames(folder, **how):
    frames, failures, _ = list_frames(folder, **how)
    assert not failures and len(frames) == 1
    return frames.to_dict('records')[0]


NAMES = {  # how programs name the file of a channel, and how it is asked for
    'metamorph': ('exp_w{k1}{name}_s1_t1.TIF', '{name}'),
    'numbered': ('exp_w{k1}.tif', 'w{k1}'),
    'imagexpress': ('exp_B03_s1_w{k1}.tif', 'w{k1}'),
    'leica': ('exp_t00_ch{k:02d}.tif', 'ch{k:02d}'),
    'fiji': ('exp_t001_c{k:03d}.tif', 'c{k:03d}'),
    'imagej': ('C{k1}-exp.tif', 'C{k1}'),
    'at the end': ('exp_C{k1}.tif', 'c{k1}'),
    'by name': ('one/exp_{name}.tif', '{name}'),
}


@pytest.mark.parametrize('layout', NAMES)
def test_files_of_one_channel_are_one_frame(layout, tmp_path):
    planes, (name, asked) = cells(0), NAMES[layout]
    for k, marker in enumerate(MARKERS):
        path = tmp_path / name.format(k=k, k1=k + 1, name=marker)
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, planes[k])
    own = [asked.format(k=k, k1=k + 1, name=marker) + f'={marker}' for k, marker in enumerate(MARKERS)]
    frame = well_frames(tmp_path, channels=','.join(own[::-1]), depth=16, segment_on='phase')
    np.testing.assert_array_equal(kept_pixels(frame), planes[::-1].transpose(1, 2, 0))
    np.testing.assert_array_equal(searched_pixels(frame), planes[0])


def test_a_table_says_what_files_are(tmp_path):
    "Names without any rule; the table gives wells, times and channels."
    rows, names = [], iter('fox cat elk ant bee cow dog eel'.split())
    (tmp_path / 'raw').mkdir()
    for t in range(2):
        for name, plane in zip(MARKERS, cells(t)):
            rows.append(dict(file=f'{next(names)}.tif', well='B3', time=t, channel=name))
            tifffile.imwrite(tmp_path / 'raw' / rows[-1]['file'], plane)
    write_csv(pd.DataFrame(rows), table := tmp_path / 'files.csv')
    how = dict(layout=str(table), pixel_size=0.65)
    ds = detect_dataset(tmp_path / 'raw', tmp_path / 'cells', min_area=500, **ALL, **how)
    assert len(ds) == 4 and list(ds.channels) == MARKERS and set(ds.colonies.group) == {'B3'}
    assert sorted(ds.colonies.frame.astype(int)) == [0, 0, 1, 1]
    frame = list_frames(tmp_path / 'raw', **how, channels='OCT4,DAPI', depth=16)[0].iloc[1]
    assert frame.frame == 1 and frame.frame_from == 'table'
    write_csv(pd.DataFrame(rows[:-1]), table)
    frames, failures, _ = list_frames(tmp_path / 'raw', **how, **ALL)
    assert len(frames) == 1 and 'found no file of SOX2' in str(failures)
    with pytest.raises(InputError, match='found layout table .*; expected layout table .*, as asked for'):
        detect_dataset(tmp_path / 'raw', tmp_path / 'cells', min_area=500, resume=True, **ALL, **how)


def test_channels_of_one_file(tmp_path):
    film = np.stack([cells(0), cells(1)])
    write_ome(tmp_path / 'film.ome.tif', film, axes='TCYX')
    tifffile.imwrite(tmp_path / 'film.tif', film, imagej=True, metadata=dict(axes='TCYX'))
    for name, asked in (('film.ome.tif', 'SOX2,dapi=DNA'), ('film.tif', '3=SOX2,1=DNA')):
        frames = picture_frames(tmp_path / name, Pictures(asked, 16))
        for planes, frame in zip(film, frames, strict=True):
            np.testing.assert_array_equal(kept_pixels(frame), planes[[3, 1]].transpose(1, 2, 0))
    with pytest.raises(InputError, match='film.tif: found the channels 0, 1, 2, 3; expected a channel OCT4'):
        picture_frames(tmp_path / 'film.tif', Pictures('OCT4', 16))


def test_nd2_by_a_stand_in(tmp_path, monkeypatch):
    "This has the attributes of nd2.ND2File that are used."
    nd2 = pytest.importorskip('nd2')
    film = np.stack([cells(0), cells(1)])

    class ND2File:
        sizes, dtype, experiment = dict(T=2, C=4, Y=film.shape[2], X=film.shape[3]), film.dtype, []

        def __init__(self, path):
            self.voxel_size = lambda: SimpleNamespace(x=0.65, y=0.65)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def frame_metadata(self, k):
            return SimpleNamespace(channels=[SimpleNamespace(channel=SimpleNamespace(name=name)) for name in MARKERS])

        def read_frame(self, k):
            return film[k]

    monkeypatch.setattr(nd2, 'ND2File', ND2File)
    (tmp_path / 'film.nd2').write_bytes(b'stand-in')
    frames, failures, _ = list_frames(tmp_path, channels='SOX2,phase', depth=16)
    assert not failures and frames.frame.tolist() == [0, 1]
    for planes, frame in zip(film, frames.to_dict('records'), strict=True):
        np.testing.assert_array_equal(kept_pixels(frame), planes[[3, 0]].transpose(1, 2, 0))


def test_focal_planes_of_each_channel_are_joined(tmp_path):
    stack = np.random.default_rng(0).integers(0, 4096, (3, 2, 40, 50)).astype(np.uint16)  # focal planes, channels
    write_ome(tmp_path / 'a.ome.tif', stack, ['phase', 'DAPI'], axes='ZCYX')
    (tmp_path / 'split').mkdir()
    for z in range(3):
        for c in range(2):
            tifffile.imwrite(tmp_path / f'split/a_z{z}_ch0{c}.tif', stack[z, c])
    expected = stack.max(0).transpose(1, 2, 0)
    one = picture_frames(tmp_path / 'a.ome.tif', Pictures('phase,DAPI', 16), z='max')[0]
    np.testing.assert_array_equal(kept_pixels(one), expected)
    frame = well_frames(tmp_path / 'split', channels='ch00=phase,ch01=DAPI', depth=16, z='max')
    np.testing.assert_array_equal(kept_pixels(frame), expected)


def test_a_channel_saved_in_the_colour_of_its_marker(tmp_path):
    level = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    Image.fromarray(np.dstack([level] * 3)).save(tmp_path / 'a_phase.png')
    Image.fromarray(np.dstack([level * 0, level * 0, level.T.reshape(40, 50)])).save(tmp_path / 'a_DAPI.png')
    frame = well_frames(tmp_path, channels='phase,DAPI')
    np.testing.assert_array_equal(kept_pixels(frame), np.dstack([level, level.T.reshape(40, 50)]))


def test_colours(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / 'a.png')
    frame = well_frames(tmp_path, channels='rgb')
    np.testing.assert_array_equal(kept_pixels(frame), rgb)
    np.testing.assert_array_equal(searched_pixels(frame), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    np.testing.assert_array_equal(
        searched_pixels(well_frames(tmp_path, channels='rgb', segment_on='blue')), rgb[..., 2]
    )
    np.testing.assert_array_equal(read_frame(well_frames(tmp_path, channels='green')), rgb[..., 1])


def test_importers_find_the_files_of_the_other_channels(tmp_path):
    (tmp_path / 'raw').mkdir()
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 8:30], mask[25:35, 30:45] = 1, 2
    planes = np.random.default_rng(0).integers(0, 4096, (2, 40, 50)).astype(np.uint16)
    for field in 'ab':
        for c in (1, 2):
            tifffile.imwrite(tmp_path / 'raw' / f'{field}_w{c}.tif', planes[c - 1])
        tifffile.imwrite(tmp_path / 'raw' / f'{field}_w1_masks.tif', mask)
    (tmp_path / 'raw' / 'b_w2.tif').unlink()
    asked = dict(channels='w1=phase,w2=DAPI', depth=16, margin=2)
    ds = import_masks(tmp_path / 'raw', tmp_path / 'cells', ['one'], **asked)
    assert ds.colonies.source.tolist() == ['a_w1.tif'] * 2 and list(ds.channels) == ['phase', 'DAPI']
    np.testing.assert_array_equal(ds.pixels(ds.colonies.index[0])[0], planes[:, 3:22, 6:32].transpose(1, 2, 0))
    (failure,) = ds.failures.itertuples()
    assert failure.source == 'b_w1.tif' and 'b_w2.tif: found no such file' in failure.reason


def test_importers_take_every_picture_with_all_its_files(tmp_path):
    "Whole images that end in numbers; pictures whose first channel is the same; masks named after another channel."
    planes = np.random.default_rng(0).integers(0, 4096, (4, 40, 50)).astype(np.uint16)
    numbered, alike, drawn = (tmp_path / name for name in ('numbered', 'alike', 'drawn'))
    for folder in (numbered, alike / 'one', alike / 'two', drawn):
        folder.mkdir(parents=True)
    for k in range(3):
        Image.fromarray((planes[:3] >> (4 + k)).astype(np.uint8).transpose(1, 2, 0)).save(numbered / f'smear_{k}.png')
    ds = import_folders(numbered, tmp_path / 'a', ['one'], channels='0=eosin,2=blue')
    assert len(ds) == 3 and not len(ds.failures)

    for folder, plane in (('one', 1), ('two', 2)):
        tifffile.imwrite(alike / folder / 'x_w1.tif', planes[0])
        tifffile.imwrite(alike / folder / 'x_w2.tif', planes[plane])
    ds = import_folders(alike, tmp_path / 'b', channels='w1=phase,w2=DAPI', depth=16)
    assert sorted(ds.colonies.label) == ['one', 'two']

    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 8:30] = 1
    for name, im in (('w_phase', planes[0]), ('w_DAPI', planes[1]), ('w_DAPI_cp_masks', mask)):
        tifffile.imwrite(drawn / f'{name}.tif', im)
    ds = import_masks(drawn, tmp_path / 'c', ['one'], channels='phase,DAPI', depth=16, margin=0)
    assert not len(ds.failures)
    np.testing.assert_array_equal(ds.pixels(ds.colonies.index[0])[0], planes[:2, 5:20, 8:30].transpose(1, 2, 0))


def test_several_images_in_a_file_are_not_its_first(tmp_path):
    with tifffile.TiffWriter(tmp_path / 'two.ome.tif', ome=True) as tif:
        for k in range(2):
            tif.write(cells(k)[:2], metadata=dict(axes='CYX', Channel=dict(Name=MARKERS[:2])))
    with pytest.raises(InputError, match='two.ome.tif: found 2 images of several channels; expected one'):
        Pictures('phase,DAPI', 16).read(tmp_path / 'two.ome.tif')


def test_a_detected_dataset_has_its_channels(raw, tmp_path):
    ds = detect_dataset(raw, tmp_path / 'cells', margin=16, contact_sheet=True, **ALL)
    assert (list(ds.channels), ds.depth, ds.info['format_version'], len(ds)) == (MARKERS, 16, 3, 8)
    assert ds.info['intensity'] == 'phase, DAPI, OCT4, SOX2 of 16 bits, as they were'
    for k, source in enumerate(sorted(ds.colonies.source.unique())):
        for r in ds.colonies[ds.colonies.source.eq(source)].itertuples():
            own = cells(k)[:, max(r.y0 - 16, 0) : r.y1 + 16, max(r.x0 - 16, 0) : r.x1 + 16]
            np.testing.assert_array_equal(ds.pixels(r.colony_id)[0], own.transpose(1, 2, 0))
        np.testing.assert_array_equal(dataset_picture(ds, source), cells(k).transpose(1, 2, 0))
    sheet = cv2.imread(str(next((ds.path / 'contact_sheets' / 'frames').glob('*.jpg'))))
    assert np.ptp(sheet.astype(int), axis=2).max() > 100  # in colours
    assert pd.read_csv(ds.path / 'qc.csv').colonies.eq(2).all()

    grey = detect_dataset(raw, tmp_path / 'grey', margin=16, channel=0)  # detection sees the same
    assert ds.colonies[['y0', 'x0', 'y1', 'x1']].equals(grey.colonies[['y0', 'x0', 'y1', 'x1']])
    for f in (grey.path / 'masks').iterdir():
        assert f.read_bytes() == (ds.path / 'masks' / f.name).read_bytes()


def tree(folder):
    "The content of all files, without the times in the manifest."
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in Path(folder).rglob('*') if f.is_file()}
    manifest = pd.read_csv(folder / 'manifest.csv').drop(columns='mtime_ns')
    return files | {'manifest.csv': manifest.to_csv()}


def test_one_channel_of_eight_bits_is_grey(raw, tmp_path):
    detect_dataset(raw, tmp_path / 'by number', margin=16, channel=0)
    detect_dataset(raw, tmp_path / 'by name', margin=16, channels='phase')
    numbered, named = tree(tmp_path / 'by number'), tree(tmp_path / 'by name')
    a, b = (read_json(tmp_path / name / 'dataset.json') for name in ('by number', 'by name'))
    assert a.pop('detection')['channel'] == 0 and b.pop('detection')['channels'] == 'phase'
    assert (b.pop('channels'), b.pop('depth'), b.pop('format_version')) == (['phase'], 8, 3)
    assert a.pop('format_version') < 3 and a == b
    for own in (numbered, named):
        own.pop('dataset.json')
    assert numbered == named


def test_workers_and_resume_change_nothing(raw, tmp_path, monkeypatch):
    import ipb_nb.detect as module

    whole = tree(detect_dataset(raw, tmp_path / 'whole', margin=16, **ALL).path)
    assert tree(detect_dataset(raw, tmp_path / 'two', margin=16, workers=2, **ALL).path) == whole
    with monkeypatch.context() as m:
        m.setattr(module, '_finish', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            detect_dataset(raw, tmp_path / 'cut', margin=16, **ALL)
    with pytest.raises(InputError, match='found channels phase,.*; expected channels phase,DAPI, as asked for'):
        detect_dataset(raw, tmp_path / 'cut', margin=16, channels='phase,DAPI', depth=16, resume=True)
    assert tree(detect_dataset(raw, tmp_path / 'cut', margin=16, resume=True, **ALL).path) == whole


def test_a_batch_goes_on_past_bad_frames(raw, tmp_path, capsys):
    write_ome(raw / 'A_2.ome.tif', cells(5)[:3], MARKERS[:3])
    write_ome(raw / 'A_3.ome.tif', cells(5).astype(np.uint32) * 2)  # 17 bits
    tifffile.imwrite(raw / 'A_4.ome.tif', cells(5)[0], metadata=OME)
    with pytest.raises(InputError, match='3 files that could not be used'):
        ipb_detect(str(raw), str(tmp_path / 'cells'), margin=16, **ALL)
    reasons = pd.read_csv(tmp_path / 'cells' / 'failures.csv').set_index('source').reason
    assert 'found the channels phase, DAPI, OCT4; expected a channel SOX2' in reasons['A_2.ome.tif']
    assert 'found uint32 pixels; expected 16 bits' in reasons['A_3.ome.tif']
    assert 'found a picture of one channel; expected a channel phase' in reasons['A_4.ome.tif']
    assert len(ColonyDataset(tmp_path / 'cells')) == 8
    assert ipb_detect(str(raw), list=True, **ALL) is None and '4 frames of 2 wells' in capsys.readouterr().out


def test_a_frame_without_one_of_its_files(tmp_path):
    (tmp_path / 'raw').mkdir()
    for t in range(3):
        for k, plane in enumerate(cells(t)):
            if (t, k) != (1, 2):
                tifffile.imwrite(tmp_path / 'raw' / f'A_t{t}_ch{k:02d}.tif', plane)
    tifffile.imwrite(tmp_path / 'raw' / 'A_t2_ch03.tif', cells(2, 200, 200)[3])
    asked = dict(channels='ch00=phase,ch01=DAPI,ch02=OCT4,ch03=SOX2', depth=16, pixel_size=0.65)
    ds = detect_dataset(tmp_path / 'raw', tmp_path / 'cells', margin=16, **asked)
    reasons = ds.failures.set_index('source').reason
    assert 'found no file of OCT4 that can be read; expected a file for each of phase, DAPI' in reasons['A_t1_ch00.tif']
    expected = 'found 200 × 200 pixels of uint16; expected 250 × 290 pixels of uint16, as phase has. SOX2 does not fit'
    assert expected in reasons['A_t2_ch00.tif']
    assert ds.colonies.source.unique().tolist() == ['A_t0_ch00.tif'] and len(reasons) == 2


def write_apart(folder, planes, name):
    "A file for each channel: w1 … w4."
    folder.mkdir(exist_ok=True)
    for k, plane in enumerate(planes):
        tifffile.imwrite(folder / f'{name}_w{k + 1}.tif', plane)


APART = dict(channels='w1=phase,w2=DAPI,w3=OCT4,w4=SOX2', pixel_size=0.65)


def test_frames_of_several_files_are_read_again(tmp_path):
    write_apart(tmp_path / 'raw', cells(0), 'A_t0')
    write_apart(tmp_path / 'raw', cells(1), 'A_t1')
    ds = detect_dataset(tmp_path / 'raw', tmp_path / 'cells', margin=16, depth=16, contact_sheet=True, **APART)
    one = detect_dataset(tmp_path / 'raw', tmp_path / 'one', margin=16, channels='w1=phase', depth=16, pixel_size=0.65)
    for t in range(2):
        np.testing.assert_array_equal(dataset_picture(ds, f'A_t{t}_w1.tif'), cells(t).transpose(1, 2, 0))
        np.testing.assert_array_equal(dataset_picture(one, f'A_t{t}_w1.tif'), cells(t)[0])
    sheet = cv2.imread(str(ds.path / 'contact_sheets' / 'frames' / 'A_t0_w1.jpg'))
    assert np.ptp(sheet.astype(int), axis=2).max() > 100 and len(np.unique(sheet[:40])) > 20  # in colours, and grainy
    assert surroundings(ds, ds.colonies.index[0])[2]
    files = read_table(ds.path / FILES, ['source', 'channel', 'file'])
    assert files.file.tolist()[:4] == [f'A_t0_w{k}.tif' for k in range(1, 5)] and len(files) == 8
    (tmp_path / 'raw' / 'A_t1_w3.tif').unlink()
    assert dataset_picture(ds, 'A_t1_w1.tif') is None and surroundings(ds, ds.colonies.index[-1])[2] is False
    (ds.path / FILES).unlink()  # as in older datasets
    assert dataset_picture(ColonyDataset(ds.path), 'A_t0_w1.tif') is None


def test_focal_planes_in_files_are_read_again(tmp_path):
    "Each file is a focal plane: of one channel, or of two."
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'two').mkdir()
    sharp, size = cells(0), dict(pixel_size=0.65, margin=16)
    for z, level in enumerate((0.5, 1, 0.25)):
        planes = (sharp * level).astype(np.uint16)
        tifffile.imwrite(tmp_path / 'raw' / f'A_z{z}.tif', (planes[0] >> 5).clip(0, 255).astype(np.uint8))
        write_ome(tmp_path / 'two' / f'A_z{z}.ome.tif', planes[:2], MARKERS[:2])
    ds = detect_dataset(tmp_path / 'raw', tmp_path / 'cells', z='max', pattern=r'(?P<well>A)_z(?P<z>\d)', **size)
    expected = (sharp[0] >> 5).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(dataset_picture(ds, 'A_z0.tif'), expected)
    asked = dict(channels='phase,DAPI', depth=16, z='max', pattern=r'(?P<well>A)_z(?P<z>\d)')
    ds = detect_dataset(tmp_path / 'two', tmp_path / 'cells2', **asked, **size)
    np.testing.assert_array_equal(dataset_picture(ds, ds.colonies.source.iloc[0]), sharp[:2].transpose(1, 2, 0))


def test_channels_are_not_mixed_by_their_numbers(tmp_path):
    raw = tmp_path / 'raw'
    raw.mkdir()
    for name, names in (('A_0', MARKERS[:2]), ('A_1', MARKERS[1::-1]), ('A_2', MARKERS[:2])):
        write_ome(raw / f'{name}.ome.tif', cells(0)[:2], names)
    said = 'channels of the frames: found phase in 2, DAPI in 1; expected one in which colonies are looked for'
    with pytest.raises(InputError, match=said):
        detect_dataset(raw, tmp_path / 'cells', channel=0)
    assert not (tmp_path / 'cells').exists()
    frames, failures, bad = list_frames(raw, channels='1=DAPI')
    assert not failures and check_frames(frames, bad) == [] and searched_channel(frames) == 'DAPI'

    tifffile.imwrite(raw / 'A_1.ome.tif', cells(0)[0], metadata=OME)  # one channel
    frames, failures, _ = list_frames(raw, channel=1)
    assert len(frames) == 2 and 'A_1.ome.tif: found a picture of one channel; expected channel 1' in str(failures)
    (tmp_path / 'colours').mkdir()
    Image.fromarray(np.zeros((60, 70, 3), np.uint8)).save(tmp_path / 'colours' / 'a.png')
    with pytest.raises(InputError, match='found red, green and blue of one channel; expected channel 1 of several'):
        detect_dataset(tmp_path / 'colours', tmp_path / 'cells', channel=1)


def test_channels_kept_by_number_have_the_same_names_everywhere(tmp_path):
    raw = tmp_path / 'raw'
    raw.mkdir()
    for name, names in (('A_0', MARKERS[:3]), ('A_1', [MARKERS[k] for k in (0, 2, 1)])):
        write_ome(raw / f'{name}.ome.tif', cells(0)[:3], names)
    said = 'channel 1 of the frames: found DAPI in 1, OCT4 in 1; expected one'
    with pytest.raises(InputError, match=said):
        detect_dataset(raw, tmp_path / 'cells', channels='0,1', depth=16)
    frames, failures, bad = list_frames(raw, channels='0=phase,1=DAPI', depth=16)  # (whoever says so knows better)
    assert not failures and check_frames(frames, bad) == []
    frames, failures, bad = list_frames(raw, channels='0', depth=16)
    assert check_frames(frames, bad) == [] and searched_channel(frames) == 'phase'


def test_numbers_of_files_are_not_numbers_of_channels(tmp_path):
    "Files that end in 0 and 1 are two frames of several channels."
    for k in range(2):
        write_ome(tmp_path / f'field_{k}.ome.tif', cells(k)[:2], MARKERS[:2])
    frames, failures, _ = list_frames(tmp_path, channels='0=phase,1=DAPI', depth=16)
    assert len(frames) == 2 and not failures
    for k, planes in enumerate((cells(0), cells(1))):
        np.testing.assert_array_equal(kept_pixels(frames.iloc[k].to_dict()), planes[:2].transpose(1, 2, 0))


def test_numbers_without_a_common_scale(tmp_path):
    (tmp_path / 'raw').mkdir()
    for k, plane in enumerate(
        (cells(0)[0], (cells(1)[0] / 65535).astype(np.float32), cells(2)[0].astype(np.int32) * 20)
    ):
        tifffile.imwrite(tmp_path / 'raw' / f'A_{k}.tif', plane, metadata=OME)
    for call in (detect_dataset, lambda *a, **how: ipb_detect(*map(str, a), preview=2, **how)):
        with pytest.raises(InputError, match='found uint16 in 1 frames, .*; expected one type of numbers') as e:
            call(tmp_path / 'raw', tmp_path / 'cells', pixel_size=0.65)
        assert '--scale image' in e.value.do and [f.name for f in tmp_path.iterdir()] == ['raw']
    ds = detect_dataset(tmp_path / 'raw', tmp_path / 'cells', pixel_size=0.65, scale='image')
    assert len(ds) == 6
    _, failures, _ = list_frames(tmp_path / 'raw', depth=16)
    said = [f['reason'] for f in failures]
    assert len(said) == 2 and all('expected 16 bits. Convert it to 16 bits (Fiji: Image, Type)' in o for o in said)


def test_a_trained_segmentation_knows_its_channel(raw, tmp_path):
    y, x = PLACES[0]
    strokes = [dict(colony=True, width=30, points=[[x - 20, y], [x + 20, y]])]
    strokes += [dict(colony=False, width=20, points=[[10, 20], [280, 20]])]
    write_json({'A_0.ome.tif': strokes}, tmp_path / 'strokes.json')
    how = dict(margin=16, min_area=500)
    ds = detect_dataset(raw, tmp_path / 'cells', channel=1, segmentation=tmp_path / 'strokes.json', **how)
    model = ds.path / 'segmentation.json'
    assert read_json(model)['searched'] == 'DAPI' == ds.info['detection']['searched'] and len(ds) == 8
    both = dict(channels='phase,DAPI', depth=16)
    detect_dataset(raw, tmp_path / 'same', segment_on='DAPI', segmentation=model, **both, **how)
    for asked in (dict(channel=0), dict(channels='phase', depth=16), both):
        with pytest.raises(InputError, match='found channel phase; expected channel DAPI, which it was trained for'):
            detect_dataset(raw, tmp_path / 'other', segmentation=model, **asked, **how)
        assert not (tmp_path / 'other' / 'colonies.csv').exists()
    info = read_json(model)
    del info['searched']  # (an older one, of channel 1)
    write_json(info, tmp_path / 'old.json')
    old = detect_dataset(raw, tmp_path / 'old', channel=1, segmentation=tmp_path / 'old.json', **how)
    assert old.colonies[['y0', 'x0']].equals(ds.colonies[['y0', 'x0']])
    with pytest.raises(InputError, match='found channel 0; expected channel 1'):
        detect_dataset(raw, tmp_path / 'other', channel=0, segmentation=tmp_path / 'old.json', **how)


@pytest.mark.parametrize('name', ['day 3.czi', 'day 3.lif', 'a.oib', 'a.VSI', 'a.ims', 'a.oir', 'a_R3D.dv'])
def test_formats_of_microscopes_are_named(name, tmp_path):
    "Alone, as a file, and beside images; a VSI is a TIFF inside, of a thumbnail."
    (tmp_path / 'raw').mkdir()
    file = tmp_path / 'raw' / name
    tifffile.imwrite(file, np.zeros((60, 60, 3), np.uint8), photometric='rgb')
    by_list = tmp_path / 'list.csv'
    by_list.write_text(f'image,label\nraw/{name},A\n')
    for call in (
        lambda: ipb_detect(str(file), str(tmp_path / 'cells')),
        lambda: ipb_detect(str(tmp_path / 'raw'), str(tmp_path / 'cells')),
        lambda: ipb_detect(str(tmp_path / 'raw'), list=True),
        lambda: ipb_detect(str(tmp_path / 'raw'), str(tmp_path / 'cells'), preview=2),
        lambda: ipb_import(str(tmp_path / 'raw'), str(tmp_path / 'cells')),
        lambda: ipb_import(str(file), str(tmp_path / 'cells')),
        lambda: FramePanes(tmp_path / 'raw', tmp_path / 'cells', 2),
    ):
        with pytest.raises(InputError) as e:
            call()
        assert name in str(e.value) and 'in Fiji' in e.value.do and 'OME-TIFF' in e.value.do, e.value
        assert sorted(f.name for f in tmp_path.iterdir()) == ['list.csv', 'raw']
    with pytest.raises(InputError, match='found no colonies and 1 failures, .* in Fiji'):
        ipb_import(str(by_list), str(tmp_path / 'cells'))
    assert not (tmp_path / 'cells').exists()
    tifffile.imwrite(tmp_path / 'raw' / 'A_0.tif', np.zeros((60, 60), np.uint8))
    frames, failures, _ = list_frames(tmp_path / 'raw')
    assert len(frames) == 1 and len(failures) == 1 and 'in Fiji' in failures[0]['reason'] and name in str(failures)


@pytest.mark.parametrize(
    'asked, said',
    [
        (dict(channels='phase,Cy5', depth=16), 'expected a channel Cy5'),
        (dict(channels='phase,DAPI'), 'found uint16 pixels; expected 8 bits. Keep them with --depth 16'),
        (
            dict(channels='phase,0=again', depth=16),
            'found one channel, phase, as phase and again; expected a channel',
        ),
        (dict(ALL, channel=1), 'channel: found it with --channels'),
        (dict(ALL, flat_field=True), 'flat_field: found it with --channels'),
        (dict(ALL, segment_on='Cy5'), 'segment_on: found Cy5'),
        (dict(depth=12), 'depth: found 12; expected 8 or 16 bits'),
        ({}, 'found 4 channels; expected one. Choose one with --channel 0 … 3, or keep several with --channels'),
    ],
)
def test_what_cannot_be_done_begins_nothing(raw, tmp_path, asked, said):
    with pytest.raises(InputError) as e:
        detect_dataset(raw, tmp_path / 'cells', margin=16, **asked)
    assert said in str(e.value) and not (tmp_path / 'cells').exists()


def test_preview_of_channels(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ipb_detect('raw', 'cells', preview=2, **ALL)
    page = (tmp_path / 'cells-preview.html').read_text()
    assert '--channels phase,DAPI,OCT4,SOX2 --depth 16' in page and page.count('data:image/jpeg') == 2
    assert not (tmp_path / 'cells').exists() and '2 frames' in capsys.readouterr().out


def labelled(ds):
    "The dataset with a class for each colony, by its marker."
    table = pd.read_csv(ds.table, keep_default_na=False)
    table['label'] = np.where(table.y0 < 100, 'OCT4+', 'SOX2+')
    write_csv(table, ds.table)
    return ColonyDataset(ds.path)


@pytest.fixture(scope='module')
def student(tmp_path_factory):
    "A run that was trained on a detected dataset of four channels."
    folder = tmp_path_factory.mktemp('student')
    (folder / 'raw').mkdir()
    for k in range(12):
        write_ome(folder / 'raw' / f'{chr(97 + k) * 2}.ome.tif', cells(k))
    ds = labelled(detect_dataset(folder / 'raw', folder / 'cells', margin=32, classes='OCT4+,SOX2+', **ALL))
    save_split(ds, labeled=0.4, test=0.3, folds=1, by='random', valid=0.1)
    length = dict(method='supervised', epochs=2, steps=200, lr=0.01, ema=0.0)  # (enough for any seed and machine)
    return train(ExperimentConfig(scales='32,16', batch_size=8, threads=1, **length), ds.path, folder / 'run')


def classes_found(out):
    table = pd.read_csv(out / 'colonies.csv')
    return (np.where(table.y0 < 100, 'OCT4+', 'SOX2+') == table.predicted).tolist()


@pytest.mark.slow
def test_raw_frames_are_predicted_from_their_channels(student, raw, tmp_path):
    predict(student, raw, tmp_path / 'found')
    assert classes_found(tmp_path / 'found') == [True] * 8
    overlay = cv2.imread(str(next((tmp_path / 'found' / 'overlays').glob('*.jpg'))))
    assert np.ptp(overlay[120:].astype(int), axis=2).max() > 60 and len(np.unique(overlay[:10])) > 5  # the frame itself
    assert read_json(tmp_path / 'found' / 'prediction.json')['channels'] == ALL['channels']
    predict(student, raw, tmp_path / 'found', resume=True)  # (is done)

    for k in range(4):
        write_apart(tmp_path / 'split', cells(k), f'{"AB"[k // 2]}_t{k % 2}')
    predict(student, tmp_path / 'split', tmp_path / 'mapped', workers=2, **APART)
    columns = ['predicted', 'p_OCT4+', 'group', 'frame', 'y0', 'x0', 'area_px']
    whole, own = (pd.read_csv(tmp_path / name / 'colonies.csv')[columns] for name in ('found', 'mapped'))
    pd.testing.assert_frame_equal(whole, own)
    for folder in ('overlays', 'maps'):  # the frames themselves, not crops on flat ground
        whole, own = (sorted((tmp_path / name / folder).iterdir()) for name in ('found', 'mapped'))
        assert [f.read_bytes() for f in whole] == [f.read_bytes() for f in own] and len(whole) == 4


@pytest.mark.slow
def test_frames_of_other_channels_are_refused_by_name(student, raw, tmp_path):
    write_ome(raw / 'A_2.ome.tif', cells(5)[:3], MARKERS[:3])
    write_ome(raw / 'B_2.ome.tif', (cells(5) >> 8).astype(np.uint8))
    predict(student, raw, tmp_path / 'found')
    reasons = pd.read_csv(tmp_path / 'found' / 'failures.csv').set_index('source').reason
    assert 'found the channels phase, DAPI, OCT4; expected a channel SOX2' in reasons['A_2.ome.tif']
    assert 'found uint8 pixels; expected 16 bits' in reasons['B_2.ome.tif']
    assert len(pd.read_csv(tmp_path / 'found' / 'colonies.csv')) == 8

    (tmp_path / 'other').mkdir()
    write_ome(tmp_path / 'other' / 'A_2.ome.tif', cells(5)[:3], MARKERS[:3])
    for asked, said in (
        ({}, 'expected a channel SOX2'),
        (dict(channels='phase,DAPI'), '--channels: found phase, DAPI of 16 bits, without OCT4, SOX2; expected phase'),
        (dict(channel=0), 'channel: found it with --channels'),
    ):
        with pytest.raises(InputError, match=said):
            predict(student, tmp_path / 'other', tmp_path / 'nothing', **asked)
        assert not (tmp_path / 'nothing').exists()
    write_ome(tmp_path / 'other' / 'A_2.ome.tif', cells(5)[::-1], MARKERS[::-1])
    numbered = shutil.copytree(student, tmp_path / 'numbered')  # trained on channels that were chosen by number
    model = read_json(numbered / 'model.json')
    model['detection']['channels'] = ','.join(f'{k}={name}' for k, name in enumerate(MARKERS))
    write_json(model, numbered / 'model.json')
    said = 'A_2.ome.tif: found the channels SOX2, .*; expected phase as channel 0, as in training. Choose'
    with pytest.raises(InputError, match=said):
        predict(numbered, tmp_path / 'other', tmp_path / 'nothing')
    predict(numbered, tmp_path / 'other', tmp_path / 'named', channels=ALL['channels'])
    assert classes_found(tmp_path / 'named') == [True] * 2
    cells_of = tmp_path / 'found' / 'cells'
    with pytest.raises(InputError, match='channels: found it with .*, a dataset; expected raw images'):
        predict(student, cells_of, tmp_path / 'nothing', channels='phase')


@pytest.mark.parametrize('channels, depth', [('grey', 8), ('grey', 16), ('01', 16)])
def test_channels_without_names_are_told_apart_by_those_of_the_files(channels, depth):
    "A student of grey pictures, and one whose channels were kept by number."
    names = (channels,) if channels == 'grey' else tuple(channels)
    student = SimpleNamespace(channels=names, depth=depth, info=dict(detection=dict(searched='phase', channel=0)))
    assert _other_channel(student, 'phase', 1, 'raw') == _other_channel(student, '', 0, 'raw') == []
    with pytest.raises(InputError, match='raw: found channel DAPI; expected channel phase, which the model'):
        _other_channel(student, 'DAPI', 0, 'raw')


@pytest.mark.slow
def test_raw_frames_may_lack_what_the_student_can_do_without(student, tmp_path):
    run, raw = shutil.copytree(student, tmp_path / 'run'), tmp_path / 'raw'
    write_json(read_json(run / 'model.json') | dict(channel_dropout=0.3), run / 'model.json')
    raw.mkdir()
    own = [k for k, c in enumerate(MARKERS) if c != 'DAPI']
    for k in range(2):
        write_ome(raw / f'A_{k}.ome.tif', cells(k)[own], [MARKERS[j] for j in own])
    predict(run, raw, tmp_path / 'found', channels='phase,OCT4,SOX2')
    departures = read_json(tmp_path / 'found' / 'prediction.json')['departures']
    assert sum('have no DAPI' in o for o in departures) == 1 and not any('Grey levels' in o for o in departures)
    assert len(pd.read_csv(tmp_path / 'found' / 'colonies.csv')) == 4
