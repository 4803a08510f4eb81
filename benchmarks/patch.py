"""The way of a patch from the files to the network, beside a plain per-item way with PIL and torchvision.

One core a process."""

import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.block import DataBlock
from figures import show
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from ipb_nb.core import write_csv, write_json
from ipb_nb.crop import BOX, grey_statistics
from ipb_nb.dataset import COLUMNS, ColonyDataset, write_dataset
from ipb_nb.patch import Crops, MultiScalePatchBlock, views

BATCH, MARGIN = 32, 112
torch.set_num_threads(1)


def disc(h, w):
    return np.hypot(*np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]) < 1


def make_crops(folder, n=200):
    "Colonies of 240 to 700 px, each with its surroundings of 112 px."
    rng = np.random.default_rng(0)

    def rows():
        for k in range(n):
            h, w = rng.integers(240, 701, 2)
            pixels = rng.normal(110, 12, (h + 2 * MARGIN, w + 2 * MARGIN)).clip(0, 255).astype(np.uint8)
            yield dict(
                colony_id=f'c{k}',
                label='A',
                source=f'{k}.tif',
                group='',
                box=(MARGIN, MARGIN, MARGIN + h, MARGIN + w),
                pixels=pixels,
                mask=np.pad(disc(h, w), MARGIN),
            )

    return write_dataset(folder, rows(), ['A'])


class Plain(Dataset):
    """An item at a time, as one writes it first.

    Files read by PIL, two tries for a position, torchvision's transforms on PIL images, the small scale cut from
    the large one."""

    def __init__(self, ds, decoded):
        self.files = [(ds.path / r.image, ds.path / r['mask']) for _, r in ds.colonies.iterrows()]
        self.decoded = [self.read(k) for k in range(len(self.files))] if decoded else None
        some = lambda t: T.RandomApply([t], 0.25)
        self.augment = T.Compose(
            [
                T.RandomHorizontalFlip(0.25),
                T.RandomVerticalFlip(0.25),
                some(T.RandomRotation((0, 180), T.InterpolationMode.BILINEAR)),
                some(T.ColorJitter(brightness=0.3)),
                some(T.ColorJitter(contrast=0.5)),
                some(T.GaussianBlur(7, (0.5, 1.5))),
                T.ToTensor(),
                T.Normalize(0.5, 0.2),
            ]
        )
        self.small = T.CenterCrop(112)

    def __len__(self):
        return len(self.files)

    def read(self, k):
        return tuple(np.array(Image.open(f)) for f in self.files[k])

    def __getitem__(self, k):
        im, mask = self.decoded[k] if self.decoded else self.read(k)
        for _ in range(2):
            y, x = random.randrange(im.shape[0] - 223), random.randrange(im.shape[1] - 223)
            if mask[y : y + 224, x : x + 224].mean() >= 0.25:
                break
        patch = Image.fromarray(im[y : y + 224, x : x + 224])
        large = [self.augment(patch) for _ in range(2)]
        return *large, *map(self.small, large)


def loader(crops, n_draws=None, workers=0):
    ids = [*crops.row]
    dls = DataBlock(
        blocks=MultiScalePatchBlock((224, 112), augment=None, fixed_patch=True),
        get_x=crops,
        splitter=lambda i: (range(len(i)), []),
    ).dataloaders(ids, bs=BATCH, num_workers=workers, device='cpu', n_draws=n_draws)
    return dls.train


def rate(batches, items, n=3):
    "Items a second, the best of n passes."
    best = 0
    for _ in range(n):
        start = time.perf_counter()
        for _ in batches():
            pass
        best = max(best, items / (time.perf_counter() - start))
    return best


def speed(folder):
    ds = make_crops(folder)
    crops = Crops(ds)
    dl = loader(crops, 20 * BATCH)

    def two_views():
        for x, keys in dl:
            yield views(x, keys, 'strong'), views(x, keys + 1, 'strong')

    ours = rate(two_views, 20 * BATCH)
    read, decoded = (
        rate(lambda: plain, 6 * BATCH)
        for d in (False, True)
        for plain in [DataLoader(Plain(ds, d), BATCH, shuffle=True, drop_last=True)]
    )
    what = 'two augmented views, 224 and 112 px, of crops of 240 to 700 px; one core'
    show('patch.items', ours, 'items/s', f'the target, and the plain way; {what}', 500)
    show(
        'patch.items.plain', read, 'items/s', f'ours; the same per item by PIL and torchvision, from the files; {what}'
    )
    show('patch.items.plain.decoded', decoded, 'items/s', f'ours; the same, with all images decoded before; {what}')
    show('patch.items.speedup', ours / read, 'x', 'the plain way from the files, in the same run')
    x, keys = dl.one_batch()
    for kind in ('plain', 'weak', 'strong', 'randaug'):
        show(
            f'patch.views.{kind}',
            rate(lambda: (views(x, keys + k, kind) for k in range(20)), 20 * BATCH),
            'views/s',
            'none stated; augmentation alone, 224 px, one core',
        )
    n = 400 * BATCH
    one, two = (rate(lambda: loader(crops, n, w), n) for w in (1, 2))
    show(
        'patch.uint8',
        rate(lambda: loader(crops, n // 4), n // 4),
        'patches/s',
        'none stated; unaugmented batches of 224 px, in the process itself',
    )
    show(
        'patch.uint8.worker',
        one,
        'patches/s',
        'two workers; unaugmented batches of 224 px; start of the processes included',
    )
    show('patch.uint8.workers', two, 'patches/s', 'one worker, in the same run')
    show('patch.uint8.speedup', two / one, 'x', 'one worker, in the same run', 1.7)


def make_many(folder, n=21000, pictures=300):
    "As many colonies as in the paper, of its range of sizes; the files are links to 300 pictures."
    rng = np.random.default_rng(1)
    ids = [f'c{k:05d}' for k in range(n)]
    sides = [(int(np.clip(h, 55, 771)), int(np.clip(w, 85, 1298))) for h, w in rng.lognormal(5.4, 0.5, (pictures, 2))]
    for d in ('images', 'masks'):
        (folder / d).mkdir(parents=True)
    for k, (h, w) in enumerate(sides):
        Image.fromarray(rng.normal(110, 12, (h + 2 * MARGIN, w + 2 * MARGIN)).clip(0, 255).astype(np.uint8)).save(
            folder / f'images/{ids[k]}.png'
        )
        Image.fromarray(np.pad(disc(h, w), MARGIN)).save(folder / f'masks/{ids[k]}.png')
    for k in range(pictures, n):
        for d in ('images', 'masks'):
            os.link(folder / d / f'{ids[k % pictures]}.png', folder / d / f'{ids[k]}.png')
    boxes = np.array(
        [(MARGIN, MARGIN, MARGIN + sides[k % pictures][0], MARGIN + sides[k % pictures][1]) for k in range(n)]
    )
    df = pd.DataFrame(
        dict(
            colony_id=ids,
            image=[f'images/{i}.png' for i in ids],
            mask=[f'masks/{i}.png' for i in ids],
            label='A',
            source='a.tif',
            group='',
            touches_border=False,
            area_px=5000,
        )
        | dict(zip(BOX, boxes.T))
    ).reindex(columns=COLUMNS)
    write_csv(df, folder / 'colonies.csv')
    write_json(
        dict(format_version=2, classes=['A'], margin=MARGIN, pixel_size=0.8, raw_root=None, imports=[]),
        folder / 'dataset.json',
    )


def resident(kind='VmRSS'):
    "GB of this process: VmRSS all, VmHWM the most there was, RssAnon without mapped files."
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(kind + ':')) * 1024 / 1e9


def in_child(f):
    "What `f` returns, from a process of its own."
    r, w = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(w, repr(f()).encode())
        finally:
            os._exit(0)
    os.close(w)
    os.waitpid(child, 0)
    with os.fdopen(r) as o:
        return eval(o.read())


def memory(folder):
    make_many(folder)
    start = time.perf_counter()
    raw = sum(h * w for h, w in Crops(ColonyDataset(folder)).shapes) / 1e9
    show(
        'patch.cache.first',
        time.perf_counter() - start,
        's',
        f'none stated; 21,000 colonies decoded once, {raw:.1f} GB',
    )

    def opened():
        start, before = time.perf_counter(), resident()
        crops = Crops(ColonyDataset(folder))  # noqa: F841 (kept alive, so that its memory counts)
        return time.perf_counter() - start, resident() - before

    show(
        'patch.cache.open',
        in_child(opened)[0],
        's',
        'the limit for 21,000 colonies once cached; mapped, as they are more than cache_gb',
        5,
    )

    def statistics():
        crops = Crops(ColonyDataset(folder))
        start = time.perf_counter()
        grey_statistics(map(crops, crops.row))
        return time.perf_counter() - start

    show(
        'patch.statistics',
        in_child(statistics),
        's',
        'none stated; what 21,000 colonies are normalised with, measured on every pixel inside them',
    )

    def whole():
        before = resident()
        crops = Crops(ColonyDataset(folder), cache_gb=100)  # noqa: F841 (kept alive, so that its memory counts)
        return (resident('VmHWM') - before) / raw

    show(
        'patch.memory',
        in_child(whole),
        'x',
        'the raw bytes; all crops and masks in memory, the highest while they are read, the table of colonies included',
        1.15,
        'lower',
    )

    def epochs():
        dl, sizes = loader(Crops(ColonyDataset(folder))), []
        for dl.epoch in range(10):
            for _ in dl:
                pass
            sizes.append(resident('RssAnon'))
        return sizes

    sizes = in_child(epochs)
    show(
        'patch.growth',
        (sizes[-1] - sizes[0]) * 1000,
        'MB',
        f'ten epochs of 21,000 patches in the process itself; {sizes[0]:.2f} GB after the first, without the '
        f'mapped file',
        20,
        'lower',
    )


with tempfile.TemporaryDirectory() as d:
    speed(Path(d) / 'crops')
    memory(Path(d) / 'many')
