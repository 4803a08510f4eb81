"The report's page in a real browser."

import pytest
from browser import barriers
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from ipb_nb.core import write_json
from ipb_nb.report import write_report
from ipb_nb.run import oracle_run
from ipb_nb.toy import toy_dataset

CONFIG = dict(preset='quick', arch='test_resnet', scales='64', multi_label=True)
ROWS = {
    'supervised': ('Supervised', dict(method='supervised', balance=False)),
    'ipb': ('IPB', dict(method='mpl', balance=True)),
}


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp('report')
    ds = toy_dataset(root / 'colonies', (30, 30, 30), labeled=0.2, valid=0.0, folds=3)
    for row, (name, own) in ROWS.items():
        for fold in range(3):
            oracle_run(root / 'runs' / f'{row}-fold{fold}', ds, name, CONFIG | own | dict(fold=fold), epochs=4)
    write_json(
        dict(grid='some.yaml', runs={f'{row}-fold{fold}': {} for row in [*ROWS, 'mpl'] for fold in range(3)}),
        root / 'runs' / 'sweep.json',
    )
    return write_report(root / 'runs')


@pytest.fixture(scope='module', params=['light', 'dark'])
def browser(request):
    options = webdriver.ChromeOptions()
    for o in (
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        '--window-size=1200,900',
        f"--blink-settings=preferredColorScheme={dict(light=1, dark=0)[request.param]}",
    ):
        options.add_argument(o)
    driver = webdriver.Chrome(options, webdriver.ChromeService('/usr/bin/chromedriver'))
    yield driver, request.param
    driver.quit()


def test_the_page_opens_offline(page, browser):
    driver, scheme = browser
    driver.get(page.as_uri())
    assert (
        driver.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        == 0
    )
    kinds = 'return [...document.images].map(i => [i.src.slice(5, 15), i.naturalWidth, i.naturalHeight])'
    images = driver.execute_script(kinds)
    figures = [width for kind, width, _ in images if kind == 'image/png;']
    cards = [max(size) for kind, *size in images if kind == 'image/jpeg']  # whole colonies
    assert len(figures) >= 8 and min(figures) > 200
    assert len(cards) >= 3 and set(cards) == {200}
    light = (
        sum(
            map(
                int,
                driver.execute_script('return getComputedStyle(document.body).backgroundColor')
                .strip('rgba()')
                .split(',')[:3],
            )
        )
        > 600
    )
    assert light == (scheme == 'light')
    for width in (1200, 600):
        driver.set_window_size(width, 900)
        assert driver.execute_script(
            'return document.documentElement.scrollWidth <= document.documentElement.clientWidth'
        )  # wide tables scroll by themselves
        driver.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert barriers(driver) == []


def test_links_lead_to_files_and_sections(page, browser):
    driver, _ = browser
    driver.get(page.as_uri())
    links = driver.execute_script("return [...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert len([o for o in links if o.startswith('report/')]) > 50
    for o in links:
        assert (
            driver.execute_script(f"return !!document.getElementById('{o[1:]}')")
            if o.startswith('#')
            else (page.parent / o).exists()
        ), o
    assert driver.execute_script("return document.body.innerText").count('not begun') == 3


def test_tables_of_runs_sort_and_filter(page, browser):
    driver, _ = browser
    driver.get(page.as_uri())
    table = driver.find_element('css selector', '#runs table')
    head = next(h for h in table.find_elements('css selector', 'thead th') if h.text == 'macro recall')
    k = table.find_elements('css selector', 'thead th').index(head)

    def column():
        rows = table.find_elements('css selector', 'tbody tr')
        return [float(r.find_elements('css selector', 'th, td')[k].text) for r in rows if r.is_displayed()]

    before = column()
    head.click()
    assert column() == sorted(before) and head.get_attribute('aria-sort') == 'ascending'
    head.send_keys(Keys.ENTER)
    assert column() == sorted(before, reverse=True)
    driver.find_element('css selector', '#runs input').send_keys('IPB-fold')
    assert len(column()) == 3 < len(before) == 6


def test_the_answers_come_first(page):
    html = page.read_text()
    assert html.index('Do the unlabelled images help?') < html.index('id="results"') < html.index('id="runs"')
    assert 'ipb-inspect runs/' in html


def test_latex_is_latex(page):
    for f in sorted((page.parent / 'report').glob('*.tex')):
        text = f.read_text()
        assert (
            text.count(r'\begin{') == text.count(r'\end{')
            and text.count('{') == text.count('}')
            and r'\toprule' in text
        ), f
        body = text.split(r'\toprule')[1].split(r'\bottomrule')[0]
        assert len({line.count('&') - line.count(r'\&') for line in body.splitlines() if '&' in line}) == 1, f


@pytest.mark.parametrize(
    'by, said', [('draws', 'Rare pseudo-labels get a high weight'), ('logits', 'U is drawn as it is')]
)
def test_balancing_is_described_as_it_was_done(by, said, tmp_path):
    ds = toy_dataset(tmp_path / 'colonies', (12, 12, 12), labeled=0.3, valid=0.0, folds=1)
    own = dict(method='mpl', balance=True, balance_by=by, fold=0)
    oracle_run(tmp_path / 'run', ds, 'IPB', CONFIG | own, epochs=2)
    html = write_report(tmp_path / 'run').read_text()
    assert [o in html for o in (said, 'Rare pseudo-labels', 'U is drawn')] == [True, by == 'draws', by == 'logits']
