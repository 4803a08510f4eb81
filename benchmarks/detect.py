"""Detection: speed and memory beside the paper's chain, and how well simulated colonies are found: by default, as in
the paper, refined, by the local standard deviation, and by five strokes."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from figures import peak_gb, show
from scipy.ndimage import binary_fill_holes
from skimage.filters import rank, threshold_otsu
from skimage.morphology import disk, opening, remove_small_objects

from ipb_nb.core import CLASSES
from ipb_nb.detect import detect_dataset
from ipb_nb.frames import list_frames
from ipb_nb.growth import OVERLAP
from ipb_nb.outlines import fill_holes
from ipb_nb.segment import colony_mask, detect_colonies, drop_small, find_colonies, texture_mask
from ipb_nb.simulate import colony_objects, draw_frame, simulate_experiment, well_states
from ipb_nb.strokes import find_trained, stroke_marks, train_segmentation, trained_mask
from ipb_nb.track import composition_label

SEED = 7  # the settings were chosen on seeds 1 and 2


def chain(image):
    "The paper's chain with the functions it names."
    entropy = rank.entropy(cv2.GaussianBlur(image, (3, 3), 0), disk(3))
    return remove_small_objects(binary_fill_holes(opening(entropy > threshold_otsu(entropy), disk(3))), max_size=1999)


def in_own_process(*args):
    "Seconds and GB of one call in a process of its own."
    said = subprocess.run(
        [sys.executable, __file__, *map(str, args)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return [float(o) for o in said.split()]


if sys.argv[1:]:
    what, path = sys.argv[1:]
    cv2.setNumThreads(1)
    image = np.load(path)
    refined = functools.partial(colony_mask, refine=True)
    f = dict(mask=colony_mask, texture=texture_mask, refined=refined, chain=chain, all=find_colonies)
    if what == 'trained':
        part = image[:1024, :1024]
        f['trained'] = functools.partial(
            trained_mask, segmentation=train_segmentation([part], [texture_mask(part).astype(np.uint8) + 1])
        )
    f = f[what]
    if what != 'all':
        f(image[:256, :256])  # tables and imports
    start = time.perf_counter()
    f(image)
    print(time.perf_counter() - start, peak_gb())
    sys.exit()


def matched(found, true):
    "A row for every true colony: best IoU, and that region's number and area."
    both = (found > 0) & (true > 0)
    keys, n = np.unique(true[both].astype(np.int64) * (found.max() + 1) + found[both], return_counts=True)
    pairs = np.divmod(keys, found.max() + 1)
    t_area, f_area = np.bincount(true.ravel()), np.bincount(found.ravel())
    df = pd.DataFrame(dict(true=pairs[0], found=pairs[1], iou=n / (t_area[pairs[0]] + f_area[pairs[1]] - n)))
    df = df.sort_values('iou').groupby('true').last()
    return df.assign(ratio=f_area[df.found] / t_area[df.index])


def together(truth, gap=7):
    "The regions of a class map, those less than 14 px (11 µm) apart as one: nearer ones the windows cannot tell apart."
    joined = fill_holes(cv2.morphologyEx((truth > 0).astype(np.uint8), cv2.MORPH_CLOSE, disk(gap)).view(bool))
    return cv2.connectedComponents(joined.view(np.uint8), connectivity=8)[1]


def by_local_sd(image, pixel_size):
    "Otsu's threshold on the local standard deviation, then as the paper's chain."
    x = cv2.GaussianBlur(image, (3, 3), 0).astype(np.float32)
    sd = np.sqrt(np.maximum(cv2.blur(x * x, (7, 7)) - cv2.blur(x, (7, 7)) ** 2, 0))
    mask = cv2.morphologyEx((sd > threshold_otsu(sd)).astype(np.uint8), cv2.MORPH_OPEN, disk(3))
    return detect_colonies(drop_small(fill_holes(mask.view(bool)), 2000))


def along(region, colony):
    "A stroke through the middle of a region, from end to end of its longer side."
    x, y, w, h = cv2.boundingRect(region.astype(np.uint8))
    depth = cv2.distanceTransform(np.pad(region[y : y + h, x : x + w], 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    if w >= h:
        points = [(x + k, y + depth[:, k].argmax()) for k in range(4, w - 4, 8)]
    else:
        points = [(x + depth[k].argmax(), y + k) for k in range(4, h - 4, 8)]
    return dict(colony=colony, width=9, points=np.array(points).tolist())


def around(region, gap=15):
    "A stroke of background around a colony."
    wide = cv2.dilate(region.astype(np.uint8), disk(gap))
    outline = cv2.findContours(wide, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0][::8, 0]
    return dict(colony=False, width=9, points=[*outline.tolist(), outline[0].tolist()])


def alone(truth, gap=25):
    "The largest colony that is whole within the frame and has no other near it."
    large = np.argsort(np.bincount(truth.ravel())[1:])[::-1] + 1
    inside = np.zeros(truth.shape, bool)
    inside[gap:-gap, gap:-gap] = True
    for k in large:
        region = truth == k
        near = cv2.dilate(region.astype(np.uint8), disk(gap)).view(bool)
        if inside[region].all() and np.unique(truth[near]).tolist() == [0, k]:
            return region
    raise ValueError('no colony that is whole and alone')


def largest_mistake(found, truth):
    "The largest colony that is missed or invented, and whether it is one."
    mistakes = []
    for own, other, colony in ((truth, found, True), (found, truth, False)):
        area = np.bincount(own.ravel())
        area[0] = area[matched(other, own).query('iou >= 0.5').index] = 0
        mistakes.append((area.max(), own == area.argmax(), colony))
    return max(mistakes, key=lambda o: o[0])


def five_strokes(exp):
    """A segmentation from five strokes on the two frames with most colonies, and these frames.

    One stroke along a colony and one around it, then three times one where the preview is most wrong."""
    frames = exp.colonies.groupby(['well', 'frame']).size().nlargest(2).index
    images, truths = zip(*(exp.frame(*frame) for frame in frames))
    truths = [colony_objects(o, exp.info['parameters']['pixel_size'])[0] for o in truths]
    strokes = [[along(alone(truths[0]), True), around(alone(truths[0]))], []]
    while True:
        marks = [stroke_marks(own, image.shape) for own, image in zip(strokes, images)]
        segmentation = train_segmentation(images, marks)
        if sum(map(len, strokes)) == 5:
            return segmentation, list(frames)
        found = [find_trained(image, segmentation)[0] for image in images]
        mistakes = list(map(largest_mistake, found, truths))
        k = max((0, 1), key=lambda k: mistakes[k][0])
        strokes[k].append(along(*mistakes[k][1:]))


def score(exp, find, without=()):
    """Every true colony with what `find(image, pixel_size)` found of it, on all frames but some.

    The share of found regions that are one; the same two where near ones are together."""
    rows, right, count, near, kinds = [], 0, 0, np.zeros(4), []
    for (well, t), own in exp.colonies.groupby(['well', 'frame']):
        if (well, t) in without:
            continue
        image, truth = exp.frame(well, t)
        found, df, *_ = find(image, exp.info['parameters']['pixel_size'])
        objects = colony_objects(truth, exp.info['parameters']['pixel_size'])[0]
        best = matched(found, objects)
        right, count = (
            right + best.found[best.iou >= 0.5].nunique(),
            count + len(df),
        )  # a small colony, below 2000 px, is one too
        joined = together(truth)
        large = np.flatnonzero(np.bincount(joined.ravel())[1:] >= 2000) + 1
        hit = (m := matched(found, joined)).iou.reindex(large).ge(0.5)
        areas = np.bincount(joined.ravel() * 5 + truth.ravel(), minlength=5 * joined.max() + 5).reshape(-1, 5)[:, 1:]
        kinds += [(composition_label(areas[k]), h) for k, h in hit.items() if areas[k].any()]
        near += [
            hit.sum(),
            len(large),
            m.found[m.iou >= 0.5].nunique(),
            len(df),
        ]
        number = own.colony_id.str[-4:].astype(int)
        rows.append(own.assign(iou=best.iou.reindex(number).fillna(0).values, ratio=best.ratio.reindex(number).values))
    df = pd.concat(rows)
    return (
        df.assign(d=2 * np.sqrt(df.area_px / np.pi) * 0.8),
        right / count,
        count,
        (near[0] / near[1], near[2] / near[3]),
        pd.DataFrame(kinds, columns=['label', 'hit']),
    )


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    p = dict(
        seed=SEED, plates=1, wells=1, frames=2, size=2908, pixel_size=0.8, interval_h=47.0, overlap=OVERLAP, effect=1.0
    )
    image = draw_frame(p, well_states(p, 'P1', 'P1-A1', False), 'P1-A1', 1)[0]
    np.save(d / 'frame.npy', image)
    timed = ('chain', 'mask', 'texture', 'refined', 'trained')
    rounds = [[in_own_process(k, d / 'frame.npy') for k in timed] for _ in range(5)]  # in turn: machines have moods
    runs = dict(zip(timed, np.array(rounds).transpose(1, 0, 2)))
    seconds = {k: float(np.median(v[:, 0])) for k, v in runs.items()}
    differ = int((colony_mask(image) != chain(image)).sum())
    show(
        'detect.mask',
        seconds['mask'],
        's',
        'the chain of cv2, scikit-image and SciPy; 2908 x 2908 px, one core, median of 5',
    )
    show('detect.mask.chain', seconds['chain'], 's', 'ours')
    show(
        'detect.mask.speedup',
        round(seconds['chain'] / seconds['mask'], 2),
        'x',
        f'the chain, in the same run; {differ} pixels differ',
        7,
    )
    show('detect.mask.memory', round(float(runs['mask'][:, 1].max()), 2), 'GB', 'the limit for the whole process', 1)
    show('detect.texture', seconds['texture'], 's', "the default; `detect.mask` is the paper's")
    show('detect.refined', seconds['refined'], 's', 'the mask as in the paper')
    show('detect.trained', seconds['trained'], 's', 'a trained segmentation (12_strokes); one core', 4, 'lower')
    reps = -(-20000 // 2908)
    np.save(d / 'large.npy', np.tile(image, (reps, reps))[:20000, :20000])
    large = in_own_process('all', d / 'large.npy')
    show(
        'detect.large',
        round(large[0], 1),
        's',
        'none stated; mask, colonies and quality of 20,000 x 20,000 px of 8 bits, one core',
    )
    show('detect.large.memory', round(large[1], 2), 'GB', 'the limit for the whole process', 6)
    (d / 'large.npy').unlink()

    exp = simulate_experiment(d / 'exp', 'small', SEED, workers=os.cpu_count())
    took = {}
    for workers in (1, 2):
        start = time.perf_counter()
        ds = detect_dataset(exp.path / 'raw', d / f'ds{workers}', truth=exp.path / 'truth', workers=workers)
        took[workers] = time.perf_counter() - start
    show(
        'detect.images.1',
        round(len(list_frames(exp.path / 'raw')[0]) / took[1], 2),
        'images/s',
        f'two workers; the preset small, {len(ds)} colonies written with masks, outlines and truth',
    )
    show(
        'detect.images.2',
        round(len(list_frames(exp.path / 'raw')[0]) / took[2], 2),
        'images/s',
        'one worker; start of the processes included',
    )
    show('detect.speedup', round(took[1] / took[2], 2), 'x', 'one worker', 1.8)

    segmentation, painted = five_strokes(exp)
    ways = dict(
        texture=(find_colonies, 'the default'),
        paper=(functools.partial(find_colonies, preset='paper'), 'as in the paper'),
        refined=(functools.partial(find_colonies, preset='paper', refine=True), "the paper's with --refine"),
        local_sd=(by_local_sd, "Otsu's threshold on the local standard deviation, 7 x 7 px; opened, filled"),
        strokes=(
            lambda image, size: find_trained(image, segmentation, size),
            'trained by five strokes on the two frames with most colonies; the other frames',
        ),
    )
    near_target = dict(texture=0.95, strokes=0.97)
    for name, (find, how) in ways.items():
        df, precision, n, near, apart = score(exp, find, painted if name == 'strokes' else ())
        hit = df.iou >= 0.5
        against = f'simulated small, seed {SEED}: {len(df)} true colonies, {n} found; {how}'
        show(f'detect.{name}.recall', round(float(hit.mean()), 3), 'share', against)
        show(f'detect.{name}.precision', round(precision, 3), 'share', against)
        show(
            f'detect.{name}.iou',
            round(float(df.iou[hit].mean()), 3),
            'IoU',
            f'{against}; mean over those found',
            0.88 if name == 'texture' else None,
        )
        show(
            f'detect.{name}.iou.all',
            round(float(df.iou.mean()), 3),
            'IoU',
            f'{against}; those missed count with what is there',
        )
        for k, v in zip(('recall', 'precision'), near):
            show(
                f'detect.{name}.{k}.apart',
                round(float(v), 3),
                'share',
                f'{against}; true colonies less than 11 µm apart count as one',
                near_target.get(name),
            )
        for kind, own in apart.groupby('label').hit:
            target = dict(Diff=0.8, Debris=0.75).get(kind) if name == 'texture' else None
            recall = round(float(own.mean()), 3)
            show(f'detect.{name}.recall.apart.{kind}', recall, 'share', f'{len(own)} colonies', target)
        kinds = {c: df.label.eq(c) for c in [*CLASSES, 'multi-label']} | {
            'below 80 µm': df.d < 80,
            '80–200 µm': df.d.between(80, 200),
            'above 200 µm': df.d > 200,
        }
        for kind, of in kinds.items():
            show(f'detect.{name}.recall.{kind}', round(float(hit[of].mean()), 3), 'share', f'{of.sum()} colonies')
            if (of & hit).any():
                show(
                    f'detect.{name}.area.{kind}',
                    round(float(df.ratio[of & hit].median()), 2),
                    'x',
                    'the true area; median of those found',
                    better='lower',
                )
