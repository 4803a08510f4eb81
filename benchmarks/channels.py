"""What channels cost: opening 21,000 crops of three channels, and patches of one and of three channels. One core a
process. (What colours are worth: long_stain.py.)"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.block import DataBlock
from figures import show
from PIL import Image

from ipb_nb.cache import Crops
from ipb_nb.channels import RGB, channel_facts
from ipb_nb.core import write_csv, write_json
from ipb_nb.crop import BOX
from ipb_nb.dataset import COLUMNS, ColonyDataset, write_dataset
from ipb_nb.patch import MultiScalePatchBlock, views

BATCH, MARGIN = 32, 112
torch.set_num_threads(1)


def disc(h, w):
    return np.hypot(*np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]) < 1


def make_many(folder, n=21_000, pictures=300, margin=8):
    "As many small colonies as the paper has large ones; the files are links to 300 pictures of three channels."
    rng = np.random.default_rng(0)
    ids, sides = [f'c{k:05d}' for k in range(n)], rng.integers(40, 101, (pictures, 2))
    for d in ('images', 'masks'):
        (folder / d).mkdir(parents=True)
    for k, (h, w) in enumerate(sides):
        pixels = rng.normal(110, 12, (h + 2 * margin, w + 2 * margin, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'images/{ids[k]}.png')
        Image.fromarray(np.pad(disc(h, w), margin)).save(folder / f'masks/{ids[k]}.png')
    for k in range(pictures, n):
        for d in ('images', 'masks'):
            os.link(folder / d / f'{ids[k % pictures]}.png', folder / d / f'{ids[k]}.png')
    h, w = sides[np.arange(n) % pictures].T
    files = dict(image=[f'images/{i}.png' for i in ids], mask=[f'masks/{i}.png' for i in ids])
    same = dict(label='A', source='a.tif', group='', touches_border=False, area_px=3000)
    boxes = dict(zip(BOX, (margin, margin, margin + h, margin + w)))
    write_csv(
        pd.DataFrame(dict(colony_id=ids) | files | same | boxes).reindex(columns=COLUMNS), folder / 'colonies.csv'
    )
    info = dict(format_version=3, classes=['A'], margin=margin, pixel_size=0.8, raw_root=None, imports=[])
    write_json(info | channel_facts(RGB), folder / 'dataset.json')


def opening(folder):
    make_many(folder)
    start = time.perf_counter()
    size = Crops(ColonyDataset(folder)).starts[-1] / 1e9
    first = time.perf_counter() - start
    show('channels.open.first', first, 's', f'none stated; 21,000 crops of three channels decoded once, {size:.2f} GB')
    times = []
    for _ in range(3):
        start, own = time.perf_counter(), time.process_time()
        Crops(ColonyDataset(folder))
        times.append((time.perf_counter() - start, time.process_time() - own))
    wall, own = min(times)
    text = f'the limit for them once cached, read into memory; the best of 3, {own:.1f} s of it on the processor'
    show('channels.open', wall, 's', text, 5)


def make_crops(folder, channels, n=100):
    "Colonies of 240 to 700 px, each with its surroundings of 112 px."
    rng = np.random.default_rng(0)

    def rows():
        for k in range(n):
            h, w = rng.integers(240, 701, 2)
            shape = (h + 2 * MARGIN, w + 2 * MARGIN, *(3,) * (channels == RGB))
            pixels = rng.normal(110, 12, shape).clip(0, 255).astype(np.uint8)
            own = dict(box=(MARGIN, MARGIN, MARGIN + h, MARGIN + w), pixels=pixels, mask=np.pad(disc(h, w), MARGIN))
            yield dict(colony_id=f'c{k}', label='A', source=f'{k}.tif', group='') | own

    return write_dataset(folder, rows(), ['A'], **channel_facts(channels))


def patches(ds, batches=20):
    "A function that makes two strong views of so many batches of patches of 224 px."
    crops = Crops(ds)
    block = MultiScalePatchBlock((224, 112), augment=None, fixed_patch=True)
    data = DataBlock(blocks=block, get_x=crops, splitter=lambda i: (range(len(i)), []))
    dl = data.dataloaders([*crops.row], bs=BATCH, num_workers=0, device='cpu', n_draws=batches * BATCH).train

    def run():
        start = time.perf_counter()
        for x, keys in dl:
            for k in range(2):
                views(x, keys + k, 'strong')
        return batches * BATCH / (time.perf_counter() - start)

    return run


def speed(folder):
    kinds = {'grey': ('grey',), 'rgb': RGB}
    runs = {kind: patches(make_crops(folder / kind, channels)) for kind, channels in kinds.items()}
    best = dict.fromkeys(runs, 0)
    for _ in range(3):  # in turn, so that both have the same machine
        for kind, run in runs.items():
            best[kind] = max(best[kind], run())
    what = 'two strong views, 224 px, of crops of 240 to 700 px; one core, the best of three in turn'
    for kind, rate in best.items():
        show(f'channels.patch.{kind}', rate, 'items/s', f'the other kind, in the same run; {what}')
    show('channels.patch.ratio', best['grey'] / best['rgb'], 'x', 'one channel against three', better='lower')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as d:
        opening(Path(d) / 'many')
        speed(Path(d))
