"""A few frames in a real browser: settings by slider and field, strokes by the mouse; what is shown is what the
command line below it finds."""

import html
import re
import shlex
import shutil
from threading import Thread

import cv2
import numpy as np
import pytest
import tifffile
from browser import Widget, barriers, look
from selenium.webdriver.common.keys import Keys

from ipb_nb import strokes, trainer
from ipb_nb.core import InputError, read_json, run_command, write_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.panes import page_server
from ipb_nb.preview import ipb_detect
from ipb_nb.trainer import SegmentationTrainer
from ipb_nb.tuning import DetectionPreview

SIDE = 360
CENTERS = (90, 100), (100, 260), (260, 180)  # y, x


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    "Frames of smooth discs on a grainy ground, which texture takes for cells."
    folder = tmp_path_factory.mktemp('tuning') / 'raw'
    folder.mkdir()
    for k in range(3):
        rng, mask = np.random.default_rng(k), np.zeros((SIDE, SIDE), np.uint8)
        for y, x in CENTERS:
            cv2.circle(mask, (x, y), 40, 1, -1)
        grain = cv2.GaussianBlur(rng.normal(0, 24, mask.shape), (0, 0), 1.5) * (mask == 0)
        image = 110 + 24 * cv2.GaussianBlur(mask.astype(float), (0, 0), 3) + grain + rng.normal(0, 1, mask.shape)
        tifffile.imwrite(folder / f'A1_{k:03d}.tif', np.clip(np.round(image), 0, 255).astype(np.uint8))
    return folder


@pytest.fixture
def opened(driver):
    "A function: the page of a widget, 1280 px wide."
    servers = []

    def page(widget, **kw):
        server = page_server(widget, kw)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        look(driver, 1280, 1100)
        driver.get(server.url)
        w = Widget(driver)
        w.wait(lambda: w.all('.zoom img'))
        return w

    yield page
    for server in servers:
        server.shutdown()
        server.server_close()


def detected(w, tmp_path):
    "The dataset that the command line on the page makes."
    words = shlex.split(w.all('pre.command')[0].text)
    assert words[0] == 'ipb-detect'
    run_command(ipb_detect, words[1:])
    return ColonyDataset(tmp_path / 'cells')


def draw(w, *points):
    "A stroke by the mouse, through points (x, y) in px of the frame."
    w.wait(lambda: w.all('.zoom[data-paint] canvas') and w.all('.ipb')[0].get_attribute('aria-busy') != 'true')
    left, top, zoom = w.driver.execute_script(
        'window.scrollTo(0, 0); const z = document.querySelector(".zoom"), r = z.querySelector("img")'
        '.getBoundingClientRect(); return [r.x, r.y, r.width / z.dataset.size.split(" ")[0]]'
    )
    kinds = ['mousePressed', *['mouseMoved'] * (len(points) - 1), 'mouseReleased']
    for kind, (x, y) in zip(kinds, [*points, points[-1]]):
        at = dict(type=kind, x=left + x * zoom, y=top + y * zoom, button='left', buttons=1, clickCount=1)
        w.driver.execute_cdp_cmd('Input.dispatchMouseEvent', at)


def test_settings_by_slider_and_field(raw, opened, tmp_path):
    kw = dict(raw=str(raw), dest=str(tmp_path / 'cells'), n=2, pixel_size=0.8)
    w = opened('ipb_nb.tuning:DetectionPreview', **kw)
    said = lambda text: w.wait(lambda: text in w.text('foot'))  # noqa: E731
    w.driver.execute_script(
        'const s = document.querySelector("input[type=range][data-field=min_area]"); s.value = 3; '
        's.dispatchEvent(new Event("change", {bubbles: true}))'
    )
    said('--min_area 500')
    w.driver.execute_script(
        'const s = document.querySelector("select[data-field=preset]"); s.value = "paper"; '
        's.dispatchEvent(new Event("change", {bubbles: true}))'
    )
    said('--preset paper')
    field = w.all('input[data-field=min_area]:not([type=range])')[0]
    field.send_keys(Keys.CONTROL, 'a', Keys.NULL, 'none of this', Keys.ENTER)
    said('found none of this')
    said('--min_area 500')
    w.press(Keys.ESCAPE)  # out of the field: keys are for the frames again
    w.press('.')
    w.wait(lambda: 'A1_002.tif' in w.text('frame'))
    assert barriers(w.driver) == []
    w.shot('preview')
    counts = [int(n) for n in re.findall(r'(\d+) colon', w.text('strip'))]
    found = detected(w, tmp_path).colonies.frame.value_counts()
    assert counts == [found.get(0, 0), found.get(2, 0)] and sum(counts)


def test_strokes_by_the_mouse(raw, opened, tmp_path):
    marks = tmp_path / 'marks'
    kw = dict(raw=str(raw), marks=str(marks), dest=str(tmp_path / 'cells'), n=2, pixel_size=0.8)
    w = opened('ipb_nb.trainer:SegmentationTrainer', **kw)
    said = lambda pane, text: w.wait(lambda: text in w.text(pane))  # noqa: E731
    said('foot', 'Paint colony and background')
    draw(w, (75, 90), (100, 90), (125, 90))
    said('foot', 'Paint background, too')
    w.press('2')
    draw(w, (10, 10), (10, 180), (10, 350), (180, 350), (350, 350))
    draw(w, (180, 10), (180, 100))
    said('frame', '3 colonies')
    w.press('3')
    w.press(')')
    said('tools', '15 px')
    draw(w, (260, 20), (260, 180))  # through one of the discs
    said('tools', '2% excluded')
    said('frame', 'colonies')
    assert barriers(w.driver) == []
    w.shot('trainer')
    (strokes,) = read_json(marks / 'strokes.json').values()
    assert [o['colony'] for o in strokes] == [True, False, False]
    assert np.abs(np.subtract(strokes[0]['points'], [(75, 90), (100, 90), (125, 90)])).max() <= 2
    out = cv2.imread(str(marks / 'exclude' / 'A1_000.png'), 0) > 0
    assert out[100, 260] and not out[100, 100]
    text, ds = w.text('frame'), detected(w, tmp_path)
    assert int(re.search(r'(\d+) colon', text)[1]) == (ds.colonies.frame == 0).sum()
    labels = tifffile.imread(ds.path / 'outlines' / 'labels' / 'A1_000.tif')
    assert not labels[out].any() and all(labels[y, x] for y, x in (CENTERS[0], CENTERS[2]))
    w.press('e')
    said('tools', 'erase')
    draw(w, (100, 70), (100, 110))
    said('foot', 'Paint colony, too')
    w.press('z')
    w.wait(lambda: 'Paint' not in w.text('foot') and len(next(iter(read_json(marks / 'strokes.json').values()))) == 3)


def test_what_was_painted_is_kept_and_other_files_are_not_touched(raw, tmp_path):
    marks = tmp_path / 'marks'
    own = [dict(colony=True, width=9, points=[[70, 90], [130, 90]])]
    own += [dict(colony=False, width=9, points=[[10, 10], [10, 350], [350, 350]])]
    write_json({'A1_001.tif': own}, marks / 'strokes.json')  # a frame that two of three would leave out
    (marks / 'exclude').mkdir()
    band = np.zeros((SIDE, SIDE), np.uint8)
    band[:, 300:] = 255
    cv2.imwrite(str(marks / 'exclude' / 'A1.png'), band)  # of the well
    w = SegmentationTrainer(raw, marks, tmp_path / 'cells', n=2, pixel_size=0.8)
    assert [job['frame']['source'] for job in w.jobs] == ['A1_000.tif', 'A1_001.tif', 'A1_002.tif']
    w.act('brush', 'colony')
    w.act('stroke', '150 260;210 260', field='A1_000.tif')
    assert not w.message and not w.found[0][0][:, 300:].any()
    assert read_json(marks / 'strokes.json')['A1_001.tif'] == own
    w.act('brush', 'exclude')
    w.act('thick', '9')
    w.act('stroke', ';'.join(f'{x} {y}' for x in range(0, SIDE, 60) for y in (0, SIDE)), field='A1_000.tif')
    assert 'all of the frame' in w.message and [f.name for f in (marks / 'exclude').iterdir()] == ['A1.png']
    assert w.found[0][0].any() and '--exclude' in html.unescape(w.pane_foot)


def test_a_preview_of_a_trained_segmentation_has_no_settings_of_texture(raw, tmp_path):
    strokes = [dict(colony=True, width=9, points=[[70, 90], [130, 90]])]
    strokes += [dict(colony=False, width=9, points=[[10, 10], [10, 350], [350, 350]])]
    write_json({'A1_000.tif': strokes}, tmp_path / 'strokes.json')
    w = DetectionPreview(raw, n=1, pixel_size=0.8, segmentation=str(tmp_path / 'strokes.json'))
    assert 'data-field="min_area"' in w.pane_tools and 'data-field="preset"' not in w.pane_tools
    assert len(w.found[0][1]) == len(CENTERS)
    with pytest.raises(InputError, match='none.json'):
        DetectionPreview(raw, n=1, pixel_size=0.8, segmentation=str(tmp_path / 'none.json'))


def painting(raw, marks):
    "A widget with a stroke of each kind on its first frame."
    w = SegmentationTrainer(raw, marks, marks.parent / 'cells', n=2, pixel_size=0.8)
    w.act('stroke', '70 90;130 90', field=w.source)
    w.act('brush', 'background')
    w.act('stroke', '10 10;10 350;350 350', field=w.source)
    return w


def test_a_stroke_computes_no_features_again(raw, tmp_path, monkeypatch):
    w, seen = painting(raw, tmp_path / 'marks'), []
    strips = strokes._strips
    monkeypatch.setattr(strokes, '_strips', lambda image: seen.append(image) or strips(image))
    w.act('stroke', '10 10;350 10', field=w.source)
    assert not w.message and not seen
    w.act('show', '1')
    w.act('stroke', '350 10;350 350', field=w.source)
    assert not w.message and len(seen) == 1 and list(w.features) == [0, 1]
    monkeypatch.setattr(trainer, '_KEPT', 2 * w.features[0].nbytes - 1)
    w.act('stroke', '20 340;200 340', field=w.source)
    assert not w.message and len(seen) == 1 and list(w.features) == [1]
    monkeypatch.setattr(trainer, '_KEPT', 0)
    w.act('stroke', '20 330;200 330', field=w.source)
    assert not w.message and not w.features  # too large to be kept
    labels = w.found[1][0]
    w = SegmentationTrainer(raw, tmp_path / 'marks', tmp_path / 'again', n=2, pixel_size=0.8)
    w.act('show', '1')
    assert (w.found[1][0] == labels).all()


def test_masks_that_others_draw_meanwhile_stay(raw, tmp_path):
    w = painting(raw, tmp_path / 'marks')
    (tmp_path / 'marks' / 'exclude').mkdir()
    files = [tmp_path / 'marks' / 'exclude' / f'{name}.png' for name in ('all', 'A1_000')]
    for file in files:
        cv2.imwrite(str(file), np.tri(SIDE, k=-300, dtype=np.uint8))
    drawn = [file.read_bytes() for file in files]
    w.act('stroke', '10 10;350 10', field=w.source)
    assert not w.message and len(read_json(tmp_path / 'marks' / 'strokes.json')[w.source]) == 3
    w.act('brush', 'exclude')
    w.act('stroke', '340 20;340 100', field=w.source)
    assert 'A1_000.png: found changed meanwhile by another' in w.message and 'open the widget again' in w.pane_foot
    assert not any(mask.any() for mask in w.masks.values()) and len(w.strokes[w.source]) == 3
    w.act('undo')
    assert not w.message and len(read_json(tmp_path / 'marks' / 'strokes.json')[w.source]) == 2
    assert drawn == [file.read_bytes() for file in files]


def test_strokes_of_two_windows_are_not_lost(raw, tmp_path):
    w, file = painting(raw, tmp_path / 'marks'), tmp_path / 'marks' / 'strokes.json'
    other = SegmentationTrainer(raw, tmp_path / 'marks', tmp_path / 'cells', n=2, pixel_size=0.8)
    w.act('stroke', '10 10;350 10', field=w.source)
    kept = file.read_bytes()
    for do, value in (('stroke', '240 180;280 180'), ('brush', 'erase'), ('stroke', '100 70;100 110')):
        other.act(do, value, field=other.source)
        assert ('changed meanwhile' in other.message) == (do == 'stroke')
        assert len(other.strokes[other.source]) == 2 and file.read_bytes() == kept
    file.unlink()
    w.act('undo')
    assert 'changed meanwhile' in w.message and len(w.strokes[w.source]) == 3 and not file.exists()
    file.write_bytes(kept)
    w.act('undo')
    assert not w.message and len(read_json(file)[w.source]) == 2


def test_files_that_cannot_be_read_are_named_below_the_frames(raw, tmp_path):
    shutil.copytree(raw, tmp_path / 'raw')
    (tmp_path / 'raw' / 'B1_000.png').write_bytes(b'xx')
    w = DetectionPreview(tmp_path / 'raw', n=2, pixel_size=0)
    w.draw()
    assert len(w.jobs) == 2 and 'B1_000.png' in w.pane_foot
