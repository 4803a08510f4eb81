"""The widgets on 20,000 predictions.

First view, a page of patches, the next colony, a verdict. (Not inspect.py: that name would hide Python's own module
from the other scripts here.)"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show
from selenium.webdriver.common.by import By

from ipb_nb.annotate import ColonyAnnotator
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_table, write_csv
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.inspect import MisclassifiedExplorer
from ipb_nb.inspection import PAGE_SIZE
from ipb_nb.panes import app_command
from ipb_nb.run import oracle_run
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

sys.path.append(str(Path(__file__).parent.parent / 'tests'))
from browser import chromium  # noqa: E402

LOOKED = 8  # seconds, at the first colony
ABOUT = '20,000 test colonies in 40,000 rows that share 600 simulated crops'


def invent(d):
    "A dataset of many rows and few pictures, and an invented run on it."
    ds = simulate_dataset(d / 'cells', 600, workers=2)
    df = read_table(ds.table, ['colony_id'])
    n = -(-40_100 // len(df))
    df = pd.concat(
        [
            df.assign(colony_id=df.colony_id + f'-{k}', track_id=df.track_id + f'-{k}', group=df.group + f'-{k % 20}')
            for k in range(n)
        ]
    )
    write_csv(df, ds.table)
    ds = ColonyDataset(ds.path)
    single = ds.colonies.label.isin(ds.classes).mean()
    save_split(ds, labeled='rest', test=20_000 / (single * len(ds)), folds=1)
    return oracle_run(d / 'run', ds, 'IPB', dict(method='mpl', fold=0), skill=1.2)


def each(f, n):
    "Milliseconds of every call."
    out = []
    for k in range(n):
        start = time.perf_counter()
        f(k)
        out.append(1000 * (time.perf_counter() - start))
    return out


def memory_mb(process):
    "Resident memory of a process."
    status = Path(f'/proc/{process.pid}/status').read_text()
    return int(status.split('VmRSS:')[1].split()[0]) / 1024


def opening(command, picture):
    """Seconds until a command prints the address of its page, and from opening that to the first decoded pictures.

    Then the memory of the server, and after ten reloads, MB."""
    driver = chromium()
    args = [sys.executable, '-m', 'ipb_nb', *command, '--no_browser']
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as server:
        try:
            begun = time.perf_counter()
            url = server.stdout.readline().strip()
            printed = time.perf_counter() - begun
            seen = f"""const done = arguments[0], look = async () => {{
                const all = [...document.querySelectorAll('{picture}')];
                if (!all.length) return setTimeout(look, 20);
                await Promise.all(all.map(i => i.decode()));
                done(all.length);
            }}; look()"""
            start = time.perf_counter()
            driver.get(url)
            driver.execute_async_script(seen)
            took, memory = time.perf_counter() - start, memory_mb(server)
            for _ in range(10):
                driver.refresh()
                driver.execute_async_script(seen)
            return printed, took, memory, memory_mb(server)
        finally:
            driver.quit()
            server.terminate()


def short_run(d):
    "A run of preset quick on simulated colonies, of a few steps: its student answers as fast as any."
    ds = simulate_dataset(d / 'few', 60, workers=2)
    save_split(ds, by='random', labeled=0.35, test=0.35, folds=1)
    return train(ExperimentConfig(pretrain_epochs=1, epochs=1, steps=2), ds.path, d / 'short')


def in_browser(d, widget, kw, ready, clicks, seconds=0):
    "Milliseconds from a click, some seconds after the page is there, to the picture that follows, in Chromium."
    args, env, url = app_command(widget, kw, d)
    server = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    driver = chromium()
    wait = '''
        const done = arguments[arguments.length-1], pane = document.querySelector(arguments[0]);
        const start = performance.now();
        const seen = new MutationObserver(async () => {
            seen.disconnect();
            await Promise.all([...pane.querySelectorAll('img')].map(i => i.decode()));
            requestAnimationFrame(() => done(performance.now()-start));
        });
        seen.observe(pane, { childList: true, subtree: true });
        document.querySelector(arguments[1]).click();'''
    try:
        for _ in range(300):
            time.sleep(0.3)
            try:
                driver.get(url)
                break
            except Exception:
                pass
        while not driver.find_elements(By.CSS_SELECTOR, ready):
            time.sleep(0.2)
        time.sleep(seconds)
        return {
            what: [driver.execute_async_script(wait, pane, button) for _ in range(n)]
            for what, (pane, button, n) in clicks.items()
        }
    finally:
        driver.quit()
        server.terminate()


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as d:
        run = invent(d := Path(d))
        start = time.perf_counter()
        pd.read_csv(run / 'predictions.csv')
        pd.read_csv(d / 'cells' / 'colonies.csv')
        read = time.perf_counter() - start
        start = time.perf_counter()
        w = MisclassifiedExplorer(run, 'ana')
        took = time.perf_counter() - start
        n = len(w.state.table)
        show(
            'inspection.first_view',
            took,
            's',
            f'the explorer on {n:,} predictions, {ABOUT}; pandas reads the two tables in {read:.2f} s',
            2,
        )
        page = each(lambda k: w.act('page', '1'), 20)
        ids = list(w.state.rows().index)
        decode = np.median(each(lambda k: [w.state.ds.pixels(i) for i in ids[3000 + 48 * k : 3048 + 48 * k]], 10))
        show(
            'inspection.page',
            np.median(page),
            'ms',
            f'a page of {PAGE_SIZE} patches that were not shown before, up to its HTML (slowest of 20: '
            f'{max(page):.0f}); decoding their crops and masks alone takes {decode:.0f} ms',
            300,
        )
        stored = each(lambda k: w.state.judge('unsure', colony_id=ids[k]), 200)
        show(
            'inspection.verdict',
            np.median(stored),
            'ms',
            f'a verdict on disk, with lock and flush (slowest of 200: {max(stored):.0f})',
            50,
        )
        both = each(lambda k: w.act('verdict', 'unsure'), 20)
        show(
            'inspection.verdict_and_view',
            np.median(both),
            'ms',
            f'a verdict, and the view of the next patch (slowest of 20: {max(both):.0f})',
        )
        a = ColonyAnnotator(d / 'cells', 'ana', among='all', n=2000)
        a.act('large')
        following = each(lambda k: a.act('class', 'Dense'), 50)
        show(
            'inspection.next_image',
            np.median(following),
            'ms',
            f'verdict and next colony in the annotator (slowest of 50: {max(following):.0f})',
            100,
        )
        for name, command, picture in (
            (
                'annotate',
                ['annotate', str(d / 'cells'), '--by', 'cem', '--among', 'all', '--n', '2000'],
                '[data-fit] img',
            ),
            ('inspect', ['inspect', str(run)], '[data-pane=gallery] img'),
        ):
            printed, took, memory, later = opening(command, picture)
            show(
                f'inspection.first_pictures.{name}',
                took,
                's',
                f'from opening the page to decoded pictures in Chromium; ipb {name} prints the address after '
                f'{printed:.1f} s; server {memory:.0f} MB, after ten reloads {later:.0f} MB; {ABOUT}',
                4,
            )
        found = in_browser(
            d,
            'ipb_nb.inspect:MisclassifiedExplorer',
            dict(run=str(run), by='ben'),
            '[data-pane=gallery] img',
            dict(page=('[data-pane=gallery]', '[aria-label="page on"]', 12)),
        )
        show(
            'inspection.page_in_browser',
            np.median(found['page']),
            'ms',
            f'from the click to {PAGE_SIZE} decoded patches in Chromium (slowest of 12: {max(found["page"]):.0f})',
            300,
        )
        found = in_browser(
            d,
            'ipb_nb.inspect:MisclassifiedExplorer',
            dict(run=str(short_run(d))),
            '[data-pane=gallery] img',
            dict(patches=('[data-pane=detail]', '[data-do=grid]', 1)),
            LOOKED,
        )
        show(
            'inspection.all_patches',
            found['patches'][0] / 1000,
            's',
            f'the first click on "all patches", {LOOKED} s after the page is there, to its picture; preset quick, CPU',
            2,
        )
        found = in_browser(
            d,
            'ipb_nb.annotate:ColonyAnnotator',
            dict(ds=str(d / 'cells'), by='ben', among='all', n=2000),
            '[data-pane=main] img',
            dict(next=('[data-pane=main]', '[data-pane=guide] [data-value=Dense]', 40)),
        )
        show(
            'inspection.next_in_browser',
            np.median(found['next']),
            'ms',
            f'from the click on a class to the next page state, decoded, in Chromium (slowest of 40: '
            f'{max(found["next"]):.0f})',
            100,
        )
