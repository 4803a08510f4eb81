"Pixel sizes, times and names as files say them, and what files say that is not to be believed."

from functools import partial

import numpy as np
import pytest
import tifffile

from ipb_nb.core import InputError
from ipb_nb.detect import detect_dataset
from ipb_nb.frames import check_frames, list_frames
from ipb_nb.reader import file_frames, read_frame
from ipb_nb.metadata import hours, pixel_um

NS = 'http://www.openmicroscopy.org/Schemas/OME/2016-06'
IM = np.random.default_rng(0).integers(90, 130, (6, 24, 32), np.uint8)


@pytest.mark.parametrize('unit', 'µm μm um UM \\u00B5m micron Microns micrometer micrometres µm/pixel um/px'.split())
def test_micrometres(unit):
    assert pixel_um(0.65, unit) == 0.65


@pytest.mark.parametrize('value, unit', [(650, 'nm'), ('0,65', 'µm'), (6.5e-4, 'mm'), (6.5e-7, 'm'), (6.5e5, 'pm')])
def test_other_lengths(value, unit):
    assert pixel_um(value, unit) == pytest.approx(0.65)


@pytest.mark.parametrize('unit', ['pixel', 'px', '', 'inch', 'inches', 'None', 'furlong', 'mum2'])
def test_what_is_no_length_of_a_pixel(unit):
    assert np.isnan(pixel_um(0.65, unit))


@pytest.mark.parametrize(
    'value, units',
    [
        (1, 'h hr hrs hour hours Hours'),
        (60, 'min mins minute minutes Min'),
        (3600, 's sec secs second seconds'),
        (3.6e6, 'ms msec msecs millisecond milliseconds'),
        (3.6e9, 'µs us μs microseconds'),
        (1 / 24, 'd day days'),
    ],
)
def test_one_hour(value, units):
    assert {hours(value, unit) for unit in units.split()} == {1}


def ome(path, n=1, says=None, name='', extra='', planes='', uuid=''):
    "An OME-TIFF of n planes whose metadata say more or less."
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{NS}"{uuid}><Image ID="Image:0" Name="{name}"><Pixels '
        f'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="32" SizeY="24" SizeC="1" SizeZ="1" '
        f'SizeT="{says or n}" PhysicalSizeX="0.65" {extra}><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
    )
    xml += planes or ''.join(f'<TiffData FirstT="{t}" IFD="{t}" PlaneCount="1"/>' for t in range(says or n))
    tifffile.imwrite(path, IM[:n], photometric='minisblack', metadata=None, description=f'{xml}</Pixels></Image></OME>')


def test_a_stopped_acquisition(tmp_path):
    ome(tmp_path / 'A1.ome.tif', 4, says=6, extra='TimeIncrement="600"')
    df, failures, _ = list_frames(tmp_path)
    assert df.frame.tolist() == [0, 1, 2, 3] and df.time_h.tolist() == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2], abs=1e-6)
    assert [f['kind'] for f in failures] == ['skipped'] and '2 planes' in failures[0]['reason']


def test_one_file_of_a_set(tmp_path):
    uuids = [f'urn:uuid:0000000{k}-0000-0000-0000-000000000000' for k in range(3)]
    blocks = ''.join(
        f'<TiffData FirstT="{k}" IFD="0" PlaneCount="1"><UUID FileName="t{k}.ome.tif">{uuids[k]}</UUID></TiffData>'
        for k in range(3)
    )
    ome(tmp_path / 't1.ome.tif', 1, 3, 'C3', 'TimeIncrement="2" TimeIncrementUnit="h"', blocks, f' UUID="{uuids[1]}"')
    df, failures, _ = list_frames(tmp_path)
    assert df[['group', 'frame', 'time_h', 'pixel_size']].values.tolist() == [['C3', 1, 2, 0.65]]
    assert '2 planes' in failures[0]['reason'] and (read_frame(df.iloc[0].to_dict()) == IM[0]).all()


@pytest.mark.parametrize(
    'extra', ['TimeIncrement="0"', 'TimeIncrement="0.0" TimeIncrementUnit="min"', '', 'TimeIncrement="x"']
)
def test_a_time_that_nobody_set(tmp_path, extra):
    ome(tmp_path / 'a.ome.tif', 3, extra=extra)
    assert list_frames(tmp_path)[0].time_h.isna().all()
    df = list_frames(tmp_path, interval_h=0.5, pixel_size=2.0)[0]
    assert df.time_h.tolist() == [0, 0.5, 1] and set(df.pixel_size) == {2}


def test_frames_at_one_time_were_not_timed(tmp_path):
    same = '<TiffData/>' + '<Plane TheC="0" TheZ="0" TheT="0" DeltaT="0"/>'
    for t in range(3):
        ome(tmp_path / f'A1_t{t}.ome.tif', planes=same)
    assert list_frames(tmp_path)[0].time_h.isna().all()
    assert list_frames(tmp_path / 'A1_t0.ome.tif')[0].time_h.tolist() == [0]


def test_the_command_line_wins_over_the_file(tmp_path):
    ome(tmp_path / 'a.ome.tif', 3, extra='TimeIncrement="600"')
    df, _, bad = list_frames(tmp_path, interval_h=2.0, pixel_size=1.0)
    assert df.time_h.tolist() == [0, 2, 4] and set(df.time_from) == {'--interval_h'}
    assert set(df.pixel_size) == {1} and not check_frames(df, bad)


def test_images_that_share_a_name(tmp_path):
    for well in ('A1', 'A2'):
        for t in (0, 1):
            ome(tmp_path / f'{well}_t{t}.ome.tif', name='Image')
    df, failures, _ = list_frames(tmp_path, interval_h=1.0)
    assert not failures and df[['group', 'frame']].values.tolist() == [['A1', 0], ['A1', 1], ['A2', 0], ['A2', 1]]
    for f in tmp_path.iterdir():
        f.unlink()
    ome(tmp_path / 'x.ome.tif', 3, name='B1')
    ome(tmp_path / 'y.ome.tif', 3, name='B2')
    assert set(list_frames(tmp_path)[0].group) == {'B1', 'B2'}


def test_dots_per_inch_are_a_printers(tmp_path):
    for how in (
        dict(resolution=(2400, 2400), resolutionunit='INCH'),
        dict(resolution=(2400 / 2.54, 2400 / 2.54), resolutionunit='CENTIMETER'),
    ):
        tifffile.imwrite(tmp_path / 'a.tif', IM[0], **how)
        df, _, bad = list_frames(tmp_path)
        assert df.pixel_size.isna().all()
        (text,) = check_frames(df, bad)
        assert 'no pixel size (but 2400 dots per inch; if that is right: --pixel_size 10.583)' in text


def test_calibrations_of_other_programs(tmp_path):
    prop = '<prop id="spatial-calibration-{}" type="{}" value="{}"/>'.format
    series = prop('state', 'bool', 'on') + prop('x', 'float', '0.65') + prop('units', 'string', 'um')
    tifffile.imwrite(
        tmp_path / 'x.tif', IM[0], metadata=None, description=f'<MetaData><PlaneInfo>{series}</PlaneInfo></MetaData>'
    )
    (frame,) = file_frames(tmp_path / 'x.tif')
    assert (frame['pixel_size'], frame['origin']) == (0.65, 'MetaSeries')


def test_axes_without_a_name(tmp_path):
    stack = IM.reshape(2, 3, 24, 32)
    tifffile.imwrite(tmp_path / 'a.tif', stack, photometric='minisblack')
    with pytest.raises(InputError, match='a.tif: found 2 × 3 planes along axes without a name'):
        file_frames(tmp_path / 'a.tif')
    tifffile.imwrite(tmp_path / 'a.tif', stack, photometric='minisblack', metadata=dict(axes='TCYX'))
    assert [f['plane'] for f in file_frames(tmp_path / 'a.tif', channel=2)] == [0, 1]


def companion(folder, n_channels=2):
    "Two positions whose metadata are in a companion."
    for k in range(2):
        own = f'<OME xmlns="{NS}" UUID="urn:uuid:{k}"><BinaryOnly MetadataFile="exp.companion.ome" UUID="u"/></OME>'
        planes = IM[: 2 * n_channels] + k
        tifffile.imwrite(folder / f'p{k}.ome.tif', planes, photometric='minisblack', metadata=None, description=own)
    images = ''
    for k in range(2):
        channels = ''.join(f'<Channel ID="Channel:{k}:{c}" SamplesPerPixel="1"/>' for c in range(n_channels))
        images += (
            f'<Image ID="Image:{k}" Name="well{k}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint8" '
            f'SizeX="32" SizeY="24" SizeC="{n_channels}" SizeZ="1" SizeT="2" PhysicalSizeX="650" PhysicalSizeXUnit="nm"'
            f' TimeIncrement="30" TimeIncrementUnit="min">{channels}'
            f'<TiffData IFD="0" PlaneCount="{2 * n_channels}"><UUID FileName="p{k}.ome.tif">urn:uuid:{k}</UUID>'
            '</TiffData></Pixels></Image>'
        )
    (folder / 'exp.companion.ome').write_text(f'<OME xmlns="{NS}" UUID="urn:uuid:9">{images}</OME>', encoding='utf-8')


def test_metadata_in_a_companion(tmp_path):
    companion(tmp_path)
    with pytest.raises(InputError, match='found 2 channels; expected one. Choose one with --channel 0 … 1'):
        list_frames(tmp_path)
    df, failures, _ = list_frames(tmp_path, channel=1)
    assert not failures and set(df.pixel_size) == {0.65}
    assert df[['group', 'frame', 'time_h']].values.tolist() == [[f'well{k}', t, t / 2] for k in (0, 1) for t in (0, 1)]
    assert all((read_frame(r) == IM[2 * (i % 2) + 1] + i // 2).all() for i, r in enumerate(df.to_dict('records')))
    (tmp_path / 'exp.companion.ome').unlink()
    with pytest.raises(InputError, match='p0.ome.tif: found no companion exp.companion.ome; expected the file'):
        file_frames(tmp_path / 'p0.ome.tif')


PROP = '<prop id="{}" type="{}" value="{}"/>'.format


def metaseries(path, y=0.65, clock=''):
    props = PROP('spatial-calibration-state', 'bool', 'on') + PROP('spatial-calibration-x', 'float', '0.65')
    props += PROP('spatial-calibration-y', 'float', y) + PROP('spatial-calibration-units', 'string', 'um')
    props += PROP('acquisition-time-local', 'time', clock) * bool(clock)
    text = f'<MetaData><PlaneInfo>{props}</PlaneInfo></MetaData>'
    tifffile.imwrite(path, IM[0], metadata=None, description=text)


def oblong_ome(path):
    tifffile.imwrite(
        path, IM[0], ome=True, metadata=dict(PhysicalSizeX=0.65, PhysicalSizeY=1300, PhysicalSizeYUnit='nm')
    )


def oblong_imagej(path):
    tifffile.imwrite(path, IM[0], imagej=True, resolution=(1 / 0.65, 1 / 1.3), metadata=dict(unit='um'))


@pytest.mark.parametrize('write', [oblong_ome, oblong_imagej, partial(metaseries, y=1.3)])
def test_pixels_that_are_no_squares(tmp_path, write):
    write(tmp_path / 'a.tif')
    df, _, bad = list_frames(tmp_path)
    (text,) = check_frames(df, bad)
    assert text.startswith('a.tif: found pixels of 0.65 × 1.3 µm (x × y); expected squares')
    with pytest.raises(InputError, match='found pixels of 0.65 × 1.3 µm'):
        detect_dataset(tmp_path, tmp_path / 'ds')
    assert not (tmp_path / 'ds').exists()
    df, _, bad = list_frames(tmp_path, pixel_size=0.65)
    assert not check_frames(df, bad)


def test_pixels_that_are_nearly_squares(tmp_path):
    metaseries(tmp_path / 'a.tif', y=0.651)
    df, _, bad = list_frames(tmp_path)
    assert set(df.pixel_size) == {0.65} and not check_frames(df, bad)


def test_the_clock_of_metaseries(tmp_path):
    clocks = {'A01_t1': '20240228 23:00:00.000', 'A01_t2': '20240229 01:30:00', 'B02_t1': '20240228 23:15:00.5'}
    for name, clock in clocks.items():
        metaseries(tmp_path / f'{name}.tif', clock=clock)
    df, failures, bad = list_frames(tmp_path)
    assert not failures and not check_frames(df, bad) and set(df.time_from) == {'MetaSeries'}
    assert df.time_h.tolist()[:2] == [0, 2.5] and df.group.tolist() == ['A01', 'A01', 'B02']
    assert abs(df.time_h[2] - 900.5 / 3600) < 1e-5
    assert list_frames(tmp_path, interval_h=6)[0].time_h.tolist() == [6, 12, 6]
