"Opening, splitting and merging annotations at the size of the paper's dataset, beside plain ways of doing the same."

import csv
import os
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from figures import show
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ipb_nb.core import MULTI_LABEL, write_csv, write_json
from ipb_nb.crop import BOX
from ipb_nb.dataset import COLUMNS, ColonyDataset
from ipb_nb.importers import import_voc
from ipb_nb.manifest import check_pictures, renew_manifest
from ipb_nb.split import _NEAR_BITS, _NEAR_CORRELATION, _box_pixels, _looks, save_split, similar_pairs
from ipb_nb.worklist import work_list

N = {'Debris': 3587, 'Dense': 3934, 'Diff': 656, 'Spread': 10506, MULTI_LABEL: 2659}  # the paper's Table 1: 21,342


def seconds(f, n=3):
    "The best of n."
    best, out = np.inf, None
    for _ in range(n):
        start = time.perf_counter()
        out = f(_)
        best = min(best, time.perf_counter() - start)
    return best, out


def make(folder, n=21_342):
    "The tables of a time-lapse of 15 wells; the pictures are empty files, which opening only looks for."
    rng = np.random.default_rng(0)
    label = np.resize(np.repeat(list(N), list(N.values())), n)
    track = np.arange(len(label)) // 24  # a track shows one class in two dozen frames
    well = rng.integers(0, 15, track.max() + 1)[track]
    ids = [f'w{w:02d}-c{t:03d}-{k:05d}' for k, (w, t) in enumerate(zip(well, track))]
    df = pd.DataFrame(
        dict(
            colony_id=ids,
            image=[f'images/{i}.png' for i in ids],
            mask=[f'masks/{i}.png' for i in ids],
            label=label,
            source=[f'{w}/{k % 48}.tif' for k, w in enumerate(well)],
            group=[f'w{w:02d}' for w in well],
            frame=np.arange(len(ids)) % 48,
            time_h=np.arange(len(ids)) % 48,
            track_id=[f'w{w:02d}-{t:03d}' for w, t in zip(well, track)],
            touches_border=False,
            y0=0,
            x0=0,
            y1=rng.integers(55, 771, len(ids)),
            x1=rng.integers(85, 1298, len(ids)),
            area_px=5000,
        )
    ).reindex(columns=COLUMNS)
    for d in ('images', 'masks', 'annotations'):
        (folder / d).mkdir(parents=True)
    for f in [*df.image, *df['mask']]:
        (folder / f).touch()
    write_csv(df, folder / 'colonies.csv')
    write_json(
        dict(
            format_version=2,
            classes=[c for c in N if c != MULTI_LABEL],
            margin=112,
            pixel_size=0.8,
            raw_root=None,
            imports=[],
        ),
        folder / 'dataset.json',
    )
    return df


def annotate(folder, df, n=20_000):
    "Three logs of n lines each, in which one verdict in twenty is a change of mind."
    rng, names = np.random.default_rng(1), [*N]
    for who in ('ana', 'ben', 'cho'):
        rows = df.colony_id.sample(n * 19 // 20, random_state=rng.integers(1e6)).tolist()
        rows += list(rng.choice(rows, n // 20))
        said = np.where(rng.random(n) < 0.85, df.set_index('colony_id').label[rows], rng.choice(names, n))
        write_csv(
            pd.DataFrame(dict(colony_id=rows, action='set', classes=said, exclude='', time='2026-01-01T00:00:00')),
            folder / 'annotations' / f'{who}.csv',
        )


def plain_open(folder):
    with open(folder / 'colonies.csv') as f:
        rows = {r['colony_id']: r for r in csv.DictReader(f)}
    for r in rows.values():
        assert (folder / r['image']).exists() and (folder / r['mask']).exists() and all(int(r[c]) >= 0 for c in BOX)
    return rows


def plain_votes(folder):
    votes = defaultdict(dict)
    for f in sorted((folder / 'annotations').glob('*.csv')):
        with open(f) as o:
            for r in csv.DictReader(o):
                votes[r['colony_id']][f.stem] = r['classes']
    out = {}
    for i, v in votes.items():
        n = Counter(v.values()).most_common(2)
        out[i] = '' if len(n) > 1 and n[0][1] == n[1][1] else n[0][0]
    return out


def altered(im, rng):
    "Copies as they come about: by other software, by a second export, by a crop that was drawn again."
    return {
        'brighter': np.clip(im * 1.1 + 15, 0, 255).astype(np.uint8),
        'JPEG, quality 50': cv2.imdecode(cv2.imencode('.jpg', im, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0),
        'blurred, sigma 1 px': cv2.GaussianBlur(im, (0, 0), 1),
        'noise, SD 5': np.clip(im + rng.normal(0, 5, im.shape), 0, 255).astype(np.uint8),
        'resized, to 90 %': cv2.resize(im, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA),
        'cut, 2 px off two sides': np.ascontiguousarray(im[2:, 2:]),
    }


def near(a, b):
    return np.bitwise_count(a[1] ^ b[1]) <= _NEAR_BITS and a[2] @ b[2] >= _NEAR_CORRELATION


def near_identical(folder):
    """What the search for near-identical pictures finds among real cells that are all different, and among altered
    copies of them."""
    ds, rng = import_voc(os.environ['IPB_BCCD'], folder), np.random.default_rng(0)
    time_, pairs = seconds(lambda _: similar_pairs(ds, ds.colonies.index), 1)
    show('dataset.near.seconds', time_, 's', f'none stated; all pairs of {len(ds)} cells')
    show(
        'dataset.near.false',
        len(pairs),
        'pairs',
        f'none stated; of {len(ds) * (len(ds) - 1) // 2} pairs of different cells',
        better='lower',
    )
    ims = [_box_pixels(ds, i) for i in rng.choice(ds.colonies.index, 400, replace=False)]
    found = pd.DataFrame([{k: near(_looks(im), _looks(c)) for k, c in altered(im, rng).items()} for im in ims]).mean()
    for k, v in found.items():
        show(
            f"dataset.near.found.{k.split(',')[0].replace(' ', '_')}",
            float(v),
            'share',
            f'none stated; 400 copies: {k}',
        )


def large(folder, n=100_000):
    "The same with more colonies than most experiments have."
    df = make(folder, n)
    took, ds = seconds(lambda _: ColonyDataset(folder))
    show('dataset.large.open', took, 's', f'the limit for {n:,} colonies', 3)
    took, split = seconds(lambda k: save_split(ds, f'track{k}', by='track'), 2)
    assert split.folds == 10
    show('dataset.large.split', took, 's', f'the limit for ten folds of {n:,} colonies, tracks kept together', 20)
    took, chosen = seconds(lambda _: work_list(ds, n=300, among='all'))
    assert len(chosen) == 300
    show('dataset.large.list', took, 's', f'the limit for 300 of {n:,} colonies to label', 3)
    annotate(folder, df, 30_000)
    took, now = seconds(lambda _: ds.labels())
    assert now.label.notna().any()
    show('dataset.large.votes', took, 's', '90,000 votes of three annotators', 3)


with tempfile.TemporaryDirectory() as d:
    if os.environ.get('IPB_BCCD'):
        near_identical(Path(d) / 'cells')
    folder = Path(d) / 'paper'
    df = make(folder)
    ours, ds = seconds(lambda _: ColonyDataset(folder))
    show('dataset.open', ours, 's', 'the limit for 21,342 colonies', 2)
    show(
        'dataset.open.plain',
        seconds(lambda _: plain_open(folder))[0],
        's',
        'csv.DictReader and a look at each file, three checks only',
    )
    renew_manifest(folder)
    show(
        'dataset.pictures',
        seconds(lambda _: check_pictures(folder))[0],
        's',
        'the limit for sizes and times of 21,342 crops and masks, when a run begins',
        1,
    )
    for by, k in dict(random=StratifiedKFold, track=StratifiedGroupKFold, group=StratifiedGroupKFold).items():
        ours, split = seconds(lambda n: save_split(ds, f'{by}{n}', by=by))
        assert split.folds == 10
        show(f'dataset.split.{by}', ours, 's', 'the limit for ten folds of 21,342 colonies, written and read back', 2)
        single = df[df.label != MULTI_LABEL]
        groups = None if by == 'random' else single.track_id if by == 'track' else single.group
        show(
            f'dataset.split.{by}.sklearn',
            seconds(lambda _: list(k(10, shuffle=True, random_state=0).split(single.label, single.label, groups)))[0],
            's',
            f"scikit-learn's {k.__name__}, train and test alone, nothing written",
        )
    annotate(folder, df)
    ours, now = seconds(lambda _: ds.labels())
    show('dataset.merge', ours, 's', 'the limit for three annotators of 20,000 lines', 2)
    plain, votes = seconds(lambda _: plain_votes(folder))
    assert all(now.label[i] == v for i, v in votes.items())
    show('dataset.merge.plain', plain, 's', 'csv.DictReader and Counter, nothing checked; the same votes')
    show(
        'dataset.annotate',
        seconds(lambda n: ds.annotate(df.colony_id[n], 'Dense', by='ana'), 20)[0] * 1000,
        'ms',
        'one verdict stored, at the end of 20,000 lines',
    )
    large(Path(d) / 'large')
