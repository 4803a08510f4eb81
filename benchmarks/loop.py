"""The labelling loop: the classifier, the keys of a person on the page, and memory over many actions."""

import tempfile
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import psutil
from figures import show
from inspection import chromium
from selenium.webdriver.common.by import By

from ipb_nb.active import colony_features, components, quick_probabilities
from ipb_nb.core import write_csv
from ipb_nb.dataset import ColonyDataset
from ipb_nb.panes import page_server
from ipb_nb.toy import toy_dataset

LABELS, KEYS, ACTIONS = 2000, 200, 2000


def head():
    "Seconds to learn from 2,000 labels and to classify 4,000 colonies."
    rng = np.random.default_rng(0)
    ids = [f'c{k}' for k in range(2 * LABELS)]
    truth = pd.Series(rng.choice(list('abcd'), len(ids), p=[0.6, 0.25, 0.1, 0.05]), ids)
    centre = {c: rng.normal(0, 0.3, 1280) for c in 'abcd'}
    features = pd.DataFrame(np.stack([centre[c] for c in truth]) + rng.normal(size=(len(ids), 1280)), ids)
    x = components(features)
    start = time.perf_counter()
    quick_probabilities(x, truth[:LABELS], list('abcd'))
    return time.perf_counter() - start


def on_the_page(folder):
    "Milliseconds from each of 200 keys to the answer, seconds of the rounds between, and MB by 2,000 more actions."
    ds = toy_dataset(folder / 'cells', (300, 300, 100), labeled='rest')
    truth = ds.colonies.label
    write_csv(ds.colonies.assign(label=''), ds.path / 'colonies.csv')
    colony_features(ColonyDataset(ds.path))
    press = """const root = document.querySelector('.ipb'), done = arguments[1], start = performance.now();
        const seen = new MutationObserver(() => {
            if (root.ariaBusy == 'true') return;
            seen.disconnect();
            requestAnimationFrame(() => done(performance.now() - start)) });
        seen.observe(root, { attributes: true, attributeFilter: ['aria-busy'] });
        root.dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0], bubbles: true }))"""
    with page_server('ipb_nb.learn:LabelLoop', dict(ds=str(ds.path), by='ana', runs=str(folder / 'runs'))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        driver = chromium()
        driver.get(server.url)
        while not driver.find_elements(By.CSS_SELECTOR, '[data-pane=main] img'):
            time.sleep(0.1)
        time.sleep(2)
        w = next(iter(server.windows.values())).widget
        keys, rounds = [], []
        while len(keys) < KEYS:
            if not w.state.left():
                rounds.append(driver.execute_async_script(press, 'Enter') / 1000)
            last = w.state.left() == 1  # (with this verdict the classifier learns)
            key = str(ds.classes.index(truth[w.state.items[w.state.at][0]]) + 1)
            (rounds if last else keys).append(driver.execute_async_script(press, key) / (1000 if last else 1))
        process = psutil.Process()
        before = process.memory_info().rss
        for k in range(ACTIONS):
            w.act(
                *[('step', '1'), ('step', '-1'), ('large', ''), ('large', ''), ('class', 'dots'), ('undo', '')][k % 6]
            )
        driver.quit()
        server.shutdown()
    return keys, rounds, (process.memory_info().rss - before) / 1e6


if __name__ == '__main__':
    show('loop.head', head(), 's', f'learning from {LABELS} labels, 128 components, 4,000 colonies classified', 2)
    with tempfile.TemporaryDirectory() as d:
        keys, rounds, grown = on_the_page(Path(d))
    about = f'{KEYS} keys on the page of 700 colonies in Chromium'
    show('loop.key', max(keys), 'ms', f'the slowest of {about} to its answer; median {np.median(keys):.0f}', 150)
    show('loop.round', max(rounds), 's', f'the slowest of {len(rounds)} times to learn, or to learn and choose a round')
    show('loop.memory', grown, 'MB', f'what the server grows by over {ACTIONS} actions', 50, 'lower')
