"""The pages in a real browser: windows that come and go, sizes, zoom, the keyboard, colours."""

import base64
import time
from threading import Thread
from weakref import ref

import numpy as np
import pandas as pd
import pytest
from browser import DARK, LIGHT, Widget, barriers, look, settled
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys

from ipb_nb import panes
from ipb_nb.annotate import ColonyAnnotator
from ipb_nb.channels import channel_facts
from ipb_nb.core import CLASSES, InputError, read_pixels, read_table, write_csv
from ipb_nb.dataset import ColonyDataset, write_dataset
from ipb_nb.panes import Panes, Problem, page_server
from ipb_nb.regions import Regions
from ipb_nb.sheets import frames_page, outlined_jpg
from ipb_nb.toy import toy_dataset


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    "120 colonies of one well; every second three of them are the frames of a track."
    ds = toy_dataset(tmp_path_factory.mktemp('page') / 'cells', (40, 40, 20, 20), 'rest', classes=CLASSES, test=0.3)
    df = read_table(ds.table, ['colony_id'])
    k = np.arange(len(df))
    names = {
        'track_id': [f't{o:03d}' if o % 2 else '' for o in k // 3],
        'frame': k % 3,
        'time_h': 8.0 * (k % 3),
        'group': 'A01',
    }
    write_csv(df.assign(**names), ds.table)
    return ds.path


@pytest.fixture(scope='module')
def server(cells):
    kw = dict(ds=str(cells), by='ana', among='all', n=90, texts=dict(Dense='small round cells'))
    with page_server('ipb_nb.annotate:ColonyAnnotator', kw) as s:
        Thread(target=s.serve_forever, daemon=True).start()
        yield s
        s.shutdown()


@pytest.fixture
def page(cells, server, driver):
    "The annotator's page, fresh, 1280 px wide, without the verdicts of tests before."
    look(driver, 1280, 1000)
    driver.get('about:blank')
    (cells / 'annotations' / 'ana.csv').unlink(missing_ok=True)
    driver.get(server.url)
    w = Widget(driver)
    settled(w)
    return w


def js(w, script, *args):
    return w.driver.execute_script(script, *args)


def test_ten_reloads_leave_one_window_and_closing_leaves_none(server, page, driver):
    assert driver.title == 'cells: labelling by ana'
    for _ in range(10):
        driver.refresh()
        page.wait(lambda: page.all('[data-pane=main] figure'))
    page.wait(lambda: len(server.windows) == 1)
    driver.get('about:blank')
    page.wait(lambda: not server.windows)


def test_a_page_says_what_it_waits_for_and_that_the_server_is_gone(cells, driver):
    holds = [True]

    def make(say):
        say('counting the colonies')
        while holds:
            time.sleep(0.05)
        return ColonyAnnotator(cells, 'dan', among='all')

    from ipb_nb.serve import PageServer

    with PageServer(make, 'a page') as s:
        Thread(target=s.serve_forever, daemon=True).start()
        driver.get(s.url)
        w = Widget(driver)
        w.wait(lambda: 'counting the colonies' in w.all('#status')[0].text)
        holds.clear()
        settled(w)
        s.shutdown()
    w.press('1')
    w.wait(lambda: 'The server has stopped' in w.all('#status')[0].text)


def test_slow_modules_are_loaded_in_a_pause(monkeypatch):
    timers, loaded = [], []

    class Timer:
        def __init__(self, seconds, f, args):
            self.load, self.state = lambda: f(*args), 'made'
            timers.append(self)

        def start(self):
            self.state = 'waits'

        def cancel(self):
            self.state = 'cancelled'

    class Slow(Panes):
        later = ('slow', 'slower')
        html_main = do_look = lambda self, *_: ''

    monkeypatch.setattr(panes, 'Timer', Timer)
    monkeypatch.setattr(panes, 'import_module', loaded.append)
    w = Slow('slow', ['main'], {})
    for do in ('look', 'poll', 'look'):
        w.act(do)
    assert [t.state for t in timers] == ['cancelled', 'cancelled', 'waits'] and not loaded
    timers[-1].load()
    assert loaded == ['slow', 'slower']
    Problem(InputError('run', 'none', 'a run', 'Train one.'))
    assert len(timers) == 3, 'a widget without slow modules has no timer'


def test_a_closed_window_gives_back_its_memory(cells):
    s = page_server('ipb_nb.annotate:ColonyAnnotator', dict(ds=str(cells), by='eve', among='all'))
    s.open('a')
    widget = ref(s.windows['a'].widget)
    s.close('a')
    s.server_close()
    assert widget() is None


def test_as_many_thumbnails_as_the_window_holds(page, driver):
    n, size = settled(page), page.all('[data-look=size]')[0]
    js(page, 'arguments[0].value = 256; arguments[0].dispatchEvent(new Event("input", {bubbles: true}))', size)
    page.wait(lambda: 0 < settled(page) < n / 2)
    js(page, 'localStorage.clear()')
    for width, height, scale in ((853, 667, 1.5), (1920, 1080, 1), (420, 840, 1)):
        look(driver, width, height, scale=scale)
        driver.refresh()
        shown = settled(page)
        assert shown > 1 and js(page, 'return document.documentElement.scrollWidth <= innerWidth')
        below = js(page, 'return document.querySelector("[data-below]").getBoundingClientRect().bottom')
        assert below <= height, (width, below)
        beside = js(page, 'return document.querySelector(".patches").getBoundingClientRect().bottom')
        assert width == 420 or below > 0.6 * height or shown == 96, (width, beside)  # the window is used
    tall = js(
        page,
        'return [...document.querySelectorAll(".ipb button")].filter(e => e.offsetParent && '
        '(e.offsetHeight < 40 || e.offsetWidth < 40)).map(e => e.outerHTML)',
    )
    assert tall == []  # targets for a finger
    page.all('.more')[0].click()
    assert page.all('[data-look=size]')[0].is_displayed()


def zoomed(page):
    return float(js(page, 'return new DOMMatrix(getComputedStyle(document.querySelector(".zoom .shot")).transform).a'))


def test_enlarge_zoom_contrast_and_frames(cells, page, driver):
    ActionChains(driver).move_to_element(page.all('figure')[4]).perform()
    page.click('figure:nth-child(5) .larger')
    page.wait(lambda: 'item 5' in page.text('main'))
    box = page.all('.zoom')[0]
    js(page, 'window.scrollTo(0, 0)')
    ActionChains(driver).scroll_from_origin(
        webdriver.common.actions.wheel_input.ScrollOrigin.from_element(box), 0, -600
    ).perform()
    page.wait(lambda: zoomed(page) > 1.5)
    page.press('0')
    page.wait(lambda: zoomed(page) == 1)
    middle = js(
        page, 'const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]', box
    )
    for kind, apart in (('touchStart', 20), ('touchMove', 40), ('touchMove', 60), ('touchEnd', None)):  # two fingers
        points = (
            [] if apart is None else [dict(x=middle[0] + s * apart, y=middle[1], id=k) for k, s in enumerate((-1, 1))]
        )
        driver.execute_cdp_cmd('Input.dispatchTouchEvent', dict(type=kind, touchPoints=points))
    page.wait(lambda: zoomed(page) > 1.5)
    shade = 'return getComputedStyle(document.querySelector(".zoom img")).filter'
    assert js(page, shade) == 'none'
    page.press(']')
    page.wait(lambda: js(page, shade) == 'contrast(1.1) brightness(1)')
    assert page.all('.reset')[0].is_displayed()
    page.press('\\')
    page.wait(lambda: js(page, shade) == 'none')
    page.press('v')
    page.wait(lambda: page.all('figure'))
    table = ColonyDataset(cells).colonies
    items = read_table(cells / 'worklists' / 'ana.csv', ['colony_id', 'kind']).colony_id.tolist()
    k = next(k for k, i in enumerate(items[:20]) if table.track_id[i] and table.frame[i] == 2)
    page.all('[data-field=find]')[0].send_keys(str(k + 1), Keys.ENTER)
    page.wait(lambda: page.all(f'[data-value="{k}"][aria-current]'))
    for key, pane, said in (
        ('.', 'foot', 'This is the last'),
        (',', 'main', '1 frame before, 8 h'),
        (',', 'main', '2 frames before, 16 h'),
        (',', 'foot', 'This is the first'),
    ):
        page.press(key)
        page.wait(lambda: said in page.text(pane))  # noqa: B023
    played = 'const seen = window.seen = new Set(), main = document.querySelector("[data-pane=main]"); '
    played += 'new MutationObserver(() => seen.add(main.innerText.match(/\\d frames? before|frames before and/)?.[0]))'
    js(page, played + '.observe(main, {childList: true})')
    keys = 'for (const key of [",", "p"])'  # before the answer to the first that there is no frame before
    js(page, keys + ' document.querySelector(".ipb").dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}))')
    page.wait(lambda: len(js(page, 'return [...window.seen]')) == 3)  # to the last frame, and from the first again
    pressed = 'return document.querySelector("[data-local=play]").ariaPressed'
    assert js(page, pressed) == 'true'
    page.press('p')
    assert js(page, pressed) == 'false'


def brushed(page, driver, item):
    "The brush is on over an item that is seen large; the numbers of its picture: middle on the page, px in one of it."
    page.all('[data-field=find]')[0].send_keys(str(item + 1), Keys.ENTER)
    page.wait(lambda: page.all(f'[data-value="{item}"][aria-current]'))
    page.press('b')
    page.wait(lambda: page.all('.zoom[data-paint] canvas'))
    return js(
        page,
        'window.scrollTo(0, 0); const z = document.querySelector(".zoom"), w = z.dataset.size.split(" ")[0]; '
        'const r = z.querySelector("img").getBoundingClientRect(); '
        'return [r.x + r.width / 2, r.y + r.height / 2, r.width / w]',
    )


def test_a_brush_paints_by_mouse_touch_and_keys(cells, page, driver):
    ds = ColonyDataset(cells)
    items = read_table(cells / 'worklists' / 'ana.csv', ['colony_id', 'kind']).colony_id.tolist()
    regions, i = Regions(ds), items[7]
    x, y, zoom = brushed(page, driver, 7)
    said = lambda text: page.wait(lambda: text in page.text('main'))  # noqa: E731
    said('nothing painted yet')
    for kind, apart in (('mousePressed', -6), ('mouseMoved', 0), ('mouseMoved', 6), ('mouseReleased', 6)):
        at = dict(type=kind, x=x + apart * zoom, y=y, button='left', buttons=1, clickCount=1)
        driver.execute_cdp_cmd('Input.dispatchMouseEvent', at)
    said('painted: Debris')
    own, inside = regions.own(i, 'ana'), ds.colony(i).inside
    r = ds.colonies.loc[i]
    middle = min(r.y0, ds.margin) + (r.y1 - r.y0) // 2, min(r.x0, ds.margin) + (r.x1 - r.x0) // 2
    assert own[middle] == 1 and not own[inside == 0].any() and 0 < (own > 0).sum() < inside.sum()
    page.press('2')
    said('painting Dense')
    for kind, points in (('touchStart', 1), ('touchMove', 1), ('touchEnd', 0)):
        at = [dict(x=x, y=y + 3 * zoom * (kind == 'touchMove'), id=0)] * points
        driver.execute_cdp_cmd('Input.dispatchTouchEvent', dict(type=kind, touchPoints=at))
    said('Dense')
    page.wait(lambda: regions.own(i, 'ana')[middle] == 2)
    strokes = len(regions.strokes('ana')[i])
    for kind, apart in (('touchStart', 20), ('touchMove', 40), ('touchEnd', 0)):  # two fingers zoom, and paint nothing
        at = [dict(x=x + s * apart, y=y, id=k) for k, s in enumerate((-1, 1))] if apart else []
        driver.execute_cdp_cmd('Input.dispatchTouchEvent', dict(type=kind, touchPoints=at))
    page.wait(lambda: zoomed(page) > 1.5)
    page.press('0')
    page.press('e')
    said('erasing')
    before = regions.own(i, 'ana')
    for key in (Keys.SPACE, Keys.ARROW_RIGHT, Keys.SPACE):  # from the middle of the picture
        page.press(key)
    page.wait(lambda: len(regions.strokes('ana')[i]) == strokes + 1)
    assert regions.own(i, 'ana')[middle] == 0
    page.press('z')
    page.wait(lambda: np.array_equal(regions.own(i, 'ana'), before))
    page.press('(')
    page.press('3')
    page.press('x')
    page.wait(lambda: (regions.own(i, 'ana') > 0).sum() == inside.sum())
    drawn = cells / 'regions' / f'{i}.png'  # written after the log
    page.wait(lambda: np.array_equal(read_pixels(drawn, raw=True), regions.of(i)))
    assert barriers(page.driver) == []
    page.press('m')  # the verdict, and on to the next colony
    page.wait(lambda: '1 of' in page.text('main') and 'nothing painted yet' in page.text('main'))
    assert (read_table(cells / 'annotations' / 'ana.csv', ['colony_id']).colony_id == i).any()
    page.press('b')
    page.wait(lambda: not page.all('.zoom[data-paint]'))
    page.press('z')
    page.wait(lambda: '0 of' in page.text('main'))


def test_find_filter_and_examples(cells, page):
    items = read_table(cells / 'worklists' / 'ana.csv', ['colony_id', 'kind'])
    page.all('[data-field=find]')[0].send_keys(items.colony_id.iloc[40], Keys.ENTER)
    k = items.index.get_loc(items.index[items.colony_id.eq(items.colony_id.iloc[40])][0])
    page.wait(lambda: page.all(f'[data-value="{k}"][aria-current]'))
    page.press('3')
    page.wait(lambda: '1 of' in page.text('main'))
    field = page.all('[data-do=only]')[0]
    js(page, 'arguments[0].value = "Diff"; arguments[0].dispatchEvent(new Event("change", {bubbles: true}))', field)
    page.wait(lambda: len(page.all('figure')) == 1 and 'Diff only' in page.text('main'))
    page.press('z')
    page.wait(lambda: '0 of' in page.text('main'))
    assert 'small round cells' in page.text('guide')
    page.click('[data-do=look]')
    page.wait(lambda: page.all('[role=dialog] img')[0].is_displayed())
    page.press(Keys.ESCAPE)
    page.wait(lambda: not page.all('[role=dialog]'))


@pytest.mark.parametrize('theme', [LIGHT, DARK])
def test_colours_and_words(page, driver, theme):
    look(driver, 1280, 1000, theme)
    ground = 'return getComputedStyle(document.querySelector(".ipb")).backgroundColor'
    page.wait(
        lambda: (sum(map(int, js(page, ground).strip('rgb()').split(','))) < 300) == (theme == DARK)
    )  # as the system
    page.press('s')
    page.press('4')
    page.wait(lambda: page.all('.done'))
    assert barriers(driver) == []
    page.press('v')
    page.wait(lambda: page.all('.zoom'))
    assert barriers(driver) == []
    page.press('v')
    page.wait(lambda: page.all('figure'))
    page.press('z')
    page.wait(lambda: not page.all('.done'))
    alts = js(page, 'return [...document.querySelectorAll(".ipb img")].map(e => e.alt)')
    assert alts and all('colony' in a and 'px long' in a for a in alts)


def focused(page):
    return js(
        page,
        'const e = document.activeElement, s = getComputedStyle(e); '
        'const name = e.dataset.do ?? e.dataset.look ?? e.dataset.local ?? e.className; '
        'return [name, parseFloat(s.outlineWidth), s.outlineStyle]',
    )


def test_by_keyboard_alone(page, driver):
    seen = []
    for _ in range(60):
        page.press(Keys.TAB)
        name, width, style = focused(page)
        assert name == '' or width >= 2 and style != 'none', name  # the focus is seen ('' has left the page)
        seen.append(name)
        if name == 'accept':
            break
    assert {'size', 'find', 'only', 'class', 'look', 'select', 'accept'} <= set(seen)
    page.press(Keys.SPACE)  # the focused button
    page.wait(lambda: 'This page is done' in page.text('main'))
    page.press('z')
    page.wait(lambda: 'Taken back' in page.text('foot'))
    js(page, 'document.querySelector(".patches .now").focus()')
    page.press(Keys.ARROW_RIGHT)
    page.wait(lambda: page.all('figure:nth-child(2) .now') and focused(page)[0] == 'select')  # the focus goes along


def test_two_windows_of_one_person_stay_in_step(cells, server, page, driver):
    first = driver.current_window_handle
    driver.switch_to.new_window('tab')
    try:
        driver.get(server.url)
        settled(page)
        page.press('2')
        page.wait(lambda: '1 of' in page.text('main'))
        driver.switch_to.window(first)
        page.wait(lambda: '1 of' in page.text('main') and len(page.all('.done')) == 1)
        page.press('2')  # it was the same colony: one more verdict on it, none on another
        page.wait(lambda: page.all('figure:nth-child(2) .now'))
        assert len(ColonyDataset(cells).annotations()) == 1
    finally:
        for handle in driver.window_handles:
            if handle != first:
                driver.switch_to.window(handle)
                driver.close()
        driver.switch_to.window(first)


def test_a_class_is_added(cells, page):
    ds = ColonyDataset(cells)
    field = page.all('[data-field=add_class]')[0]
    field.send_keys(ds.classes[0].upper(), Keys.ENTER)
    page.wait(lambda: 'if capitals do not count' in page.text('foot'))
    page.all('[data-field=add_class]')[0].send_keys('Bleb', Keys.ENTER)
    page.wait(lambda: 'Bleb' in page.text('guide') and 'is a class now' in page.text('foot'))
    page.press(str(len(ds.classes) + 1))  # its key; the field has lost the focus
    page.wait(lambda: ColonyDataset(cells).labels().label.eq('Bleb').sum() == 1)
    assert barriers(page.driver) == []
    page.press('z')
    page.wait(lambda: 'Taken back' in page.text('foot'))


@pytest.mark.parametrize('embedded', [False, True])
def test_the_page_of_frames(driver, tmp_path, embedded):
    "A click opens a frame in full, the wheel zooms, a drag moves, a click or Esc closes; a tick leaves those flagged."
    image = np.random.default_rng(0).integers(90, 130, (300, 400)).astype(np.uint8)
    labels = np.zeros(image.shape, np.int32)
    labels[100:200, 100:250] = 1
    table = pd.DataFrame(dict(number=[1], y0=[100], x0=[100]))
    (tmp_path / 'frames').mkdir()
    for k in range(2):
        (tmp_path / 'frames' / f'A1 #{k}.jpg').write_bytes(outlined_jpg(image, labels, table))
    quality = pd.DataFrame(dict(source=['A1/0.tif', 'A1/1.tif'], group='A1', frame=[0, 1], time_h=np.nan, colonies=1))
    pictures = {f'A1/{k}.tif': f'frames/A1 #{k}.jpg' for k in range(2)}
    if embedded:
        pictures = {
            source: f'data:image/jpeg;base64,{base64.b64encode((tmp_path / name).read_bytes()).decode()}'
            for source, name in pictures.items()
        }
    how = dict(aspect=4 / 3, command='ipb-detect raw cells' if embedded else '')
    page = frames_page(quality.assign(flag=['', 'confluent']), pictures, 'cells', **how)
    (tmp_path / 'index.html').write_text(page, encoding='utf-8')
    w = Widget(driver)
    for width, theme in ((420, DARK), (1280, LIGHT)):
        look(driver, width, 900, theme)
        driver.get((tmp_path / 'index.html').as_uri())
        assert js(w, 'return document.documentElement.scrollWidth <= innerWidth')
        assert barriers(driver) == []
    assert not js(w, 'return document.querySelector("dialog").open')
    w.wait(lambda: js(w, 'return document.querySelector("figure img").naturalWidth') == 1200)
    w.click('figure a')
    large = 'return document.querySelector("dialog img").getBoundingClientRect().toJSON()'
    w.wait(lambda: js(w, large)['width'] >= 1190)
    before = js(w, large)
    ActionChains(driver).scroll_from_origin(ScrollOrigin.from_viewport(640, 450), 0, -400).perform()
    w.wait(lambda: js(w, large)['width'] > 2 * before['width'])
    before = js(w, large)
    held = ActionChains(driver).move_to_element(w.all('dialog img')[0]).click_and_hold()
    held.move_by_offset(60, 30).release().perform()
    moved = js(w, large)
    assert (round(moved['x'] - before['x']), round(moved['y'] - before['y'])) == (60, 30)
    assert js(w, 'return document.querySelector("dialog").open')
    ActionChains(driver).click().perform()
    assert not js(w, 'return document.querySelector("dialog").open')
    w.click('figure a')
    w.wait(lambda: js(w, 'return document.querySelector("dialog").open'))
    w.press(Keys.ESCAPE)
    w.wait(lambda: not js(w, 'return document.querySelector("dialog").open'))
    w.click('#only')
    shown = [e.is_displayed() for e in w.all('figure')]
    assert shown == [False, True]


@pytest.fixture(scope='module')
def marked(tmp_path_factory):
    "A dozen colonies with two markers in 16 bits; one marker is brighter in one class."
    rng, inside = np.random.default_rng(0), np.hypot(*np.ogrid[-1:1:60j, -1:1:60j]) < 0.7

    def rows():
        for k in range(12):
            levels = [2000, 900 * (1 + k % 2), 1500]
            pixels = (rng.random((60, 60, 3)) * 200 + inside[..., None] * levels).astype(np.uint16)
            own = dict(label='', source=f'{k}.tif', group='', box=(8, 8, 52, 52), pixels=pixels, mask=inside)
            yield dict(colony_id=f'c{k:02d}') | own

    folder = tmp_path_factory.mktemp('marked') / 'cells'
    return write_dataset(folder, rows(), CLASSES, margin=8, **channel_facts(['phase', 'DAPI', 'OCT4'], 16)).path


def test_channels_are_hidden_and_shown(marked, driver):
    kw = dict(ds=str(marked), by='ana', among='all', n=9)
    with page_server('ipb_nb.annotate:ColonyAnnotator', kw) as s:
        Thread(target=s.serve_forever, daemon=True).start()
        try:
            look(driver, 1280, 1000)
            driver.get(s.url)
            w = Widget(driver)
            settled(w)
            picture = lambda: w.all('[data-pane=main] figure img')[0].get_attribute('src')
            shown = lambda: [b.get_attribute('aria-pressed') for b in w.all('.channels button')]
            whole = picture()
            assert [b.text.split()[0] for b in w.all('.channels button')] == ['phase', 'DAPI', 'OCT4']
            colors = js(w, 'return [...document.querySelectorAll(".channels .dot")].map(e => e.style.background)')
            assert colors[0] == 'rgb(255, 255, 255)' and len(set(colors)) == 3
            w.press('@')  # (Shift and 2)
            w.wait(lambda: shown() == ['true', 'false', 'true'])
            assert picture() != whole and '0 of' in w.text('main')  # no class was said
            w.press('@')
            w.wait(lambda: shown() == ['true'] * 3)
            assert picture() == whole
            look(driver, 420, 800)
            settled(w)
            for name in ('phase', 'DAPI'):
                w.click(f'.channels [data-value={name}]')
                settled(w)
            assert shown() == ['false', 'false', 'true']
            w.click('.channels [data-value=OCT4]')
            w.wait(lambda: 'the last one that is shown' in w.text('foot'))
            assert shown() == ['false', 'false', 'true']
            assert js(w, 'const e = document.querySelector(".ipb"); return e.scrollWidth <= e.clientWidth + 1')
            w.press('v')
            w.wait(lambda: w.all('.zoom img'))
        finally:
            s.shutdown()
            look(driver, 1280, 1000)


def test_grey_has_no_channels_to_choose(page):
    assert not page.all('.channels')
