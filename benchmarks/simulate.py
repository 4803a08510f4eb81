"""Simulation: seconds and memory of a paper-size frame, what a second worker gives, and the distance transform beside
SciPy's exact one."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from figures import peak_gb, show
from scipy import ndimage as ndi

from ipb_nb.growth import OVERLAP
from ipb_nb.optics import Sheet
from ipb_nb.simulate import draw_frame, simulate_experiment, well_states

SEED = 7


def late_frame():
    p = dict(
        seed=SEED, plates=1, wells=1, frames=2, size=2908, pixel_size=0.8, interval_h=47.0, overlap=OVERLAP, effect=1.0
    )
    return p, well_states(p, 'P1', 'P1-A1', False)


if sys.argv[1:] == ['frame']:  # in a process of its own: only its memory counts
    p, states = late_frame()
    start = time.perf_counter()
    draw_frame(p, states, 'P1-A1', 1)
    print(time.perf_counter() - start, peak_gb())
    sys.exit()

cv2.setNumThreads(1)
os.environ['OMP_NUM_THREADS'] = '1'
runs = [
    [
        float(o)
        for o in subprocess.run(
            [sys.executable, __file__, 'frame'], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
    ]
    for _ in range(3)
]
show(
    'simulate.frame',
    round(float(np.median([r[0] for r in runs])), 2),
    's',
    'the limit for 2908 x 2908 px on one core, hour 47; median of 3',
    3,
)
show('simulate.frame.memory', round(max(r[1] for r in runs), 2), 'GB', 'the limit for the whole process', 1)

start = time.perf_counter()
p, states = late_frame()
show('simulate.well', round(time.perf_counter() - start, 2), 's', 'none stated; 47 hours of one well of 2908 px')

seconds = {}
for workers in (1, 2):
    with tempfile.TemporaryDirectory() as d:
        start = time.perf_counter()
        simulate_experiment(Path(d) / 'exp', 'small', SEED, workers=workers)
        seconds[workers] = time.perf_counter() - start
show(
    'simulate.seconds.1',
    round(seconds[1], 1),
    's',
    'two workers; the preset small, 6 wells of 24 frames of 2048 px, written',
)
show('simulate.seconds.2', round(seconds[2], 1), 's', 'one worker; start of the processes included')
show('simulate.speedup', round(seconds[1] / seconds[2], 2), 'x', 'one worker', 1.7)

seeds = (Sheet(states['cells_001'], 2908, 0.8, np.random.default_rng(0)).owner < 0).astype(np.uint8)
for name, against, f in (
    (
        'territories',
        "scipy's exact one, with indices",
        lambda: cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL),
    ),
    (
        'territories.scipy',
        'the approximate one of OpenCV that is used',
        lambda: ndi.distance_transform_edt(seeds, return_indices=True),
    ),
):
    start = time.perf_counter()
    f()
    show(
        f'simulate.{name}',
        round(time.perf_counter() - start, 2),
        's',
        f'{against}; nearest cell of every pixel, 2908 x 2908',
    )
