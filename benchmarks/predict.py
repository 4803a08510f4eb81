"""Prediction: what classification and maps add to the network's own time, two processes against one, memory, and how
often the tests find what is not there."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import psutil
import torch
from figures import show

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import CLASSES
from ipb_nb.detect import detect_dataset
from ipb_nb.experiment import train
from ipb_nb.patch import views
from ipb_nb.predict import predict_source
from ipb_nb.simulate import EXPERIMENTS, plan_wells, simulate_dataset, simulate_experiment
from ipb_nb.split import save_split
from ipb_nb.student import Student, patch_grid
from ipb_nb.timecourse import null_tests, state_course, well_fractions

BIN = Path(sys.executable).parent
NETWORKS = {
    'quick, 64 px': dict(scales='64'),
    'HRNet, 128 px': dict(arch='hrnet', scales='128'),
    'HRNet, 224 and 112 px': dict(arch='hrnet', scales='224,112'),
}


def seconds(f, n=3):
    def once():
        start = time.perf_counter()
        f()
        return time.perf_counter() - start

    f()
    return float(np.median([once() for _ in range(n)]))


def patches_of(student, ds, ids):
    "The very patches that are looked at."
    out = []
    for c in map(ds.colony, ids):
        ys, xs, fraction, side = patch_grid(c, student.side, student.side // 2, student.small)
        out += [
            c.cut((ys[i], xs[j], ys[i] + side, xs[j] + side), student.side)
            for i, j in np.argwhere(np.isfinite(fraction))
        ]
    return np.stack(out)


def frame(d, runs):
    "One frame of 2908 × 2908 px with 30 colonies."
    simulate_experiment(d / 'exp', 'paper', seed=1, plates=1, wells=1, frames=1)
    ds = detect_dataset(d / 'exp' / 'raw', d / 'frame')
    ids = list(ds.colonies.sort_values('area_px').index[-30:])
    for name, run in runs.items():
        student = Student(run)
        x = views(
            torch.from_numpy(patches_of(student, ds, ids))[:, None], None, 'plain', **student.info['normalisation']
        )
        with torch.no_grad():
            bare = seconds(lambda: [student.net(x[k : k + 64]) for k in range(0, len(x), 64)])
        whole = seconds(lambda: predict_source(student, ds, ids, size=(2908, 2908)))
        show(
            f"predict.frame.{run.name}", whole, 's', f'{len(ids)} colonies in 2908 × 2908 px, {len(x)} patches, {name}'
        )
        show(
            f"predict.frame.{run.name}.over_network",
            whole / bare,
            'x',
            f'the network alone on the same patches, {bare:.2f} s',
            2,
            'lower',
        )


def command(run, images, out, workers, threads=1):
    "Seconds, and the peak memory of the main process in MB."
    start, peak = time.perf_counter(), 0
    p = psutil.Popen(
        [BIN / 'ipb-predict', run, images, '--out', out, '--workers', str(workers)],
        env=os.environ | {'OMP_NUM_THREADS': str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while p.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, p.memory_info().rss)
        time.sleep(0.05)
    assert p.returncode == 0
    return time.perf_counter() - start, peak / 2**20


def workers(d, run):
    simulate_experiment(d / 'many', 'small', seed=2, wells=4, frames=24, workers=2)
    one, many = command(run, d / 'many' / 'raw', d / 'one', 1)
    two, _ = command(run, d / 'many' / 'raw', d / 'two', 2)
    n = len(pd.read_csv(d / 'one' / 'colonies.csv'))
    show(
        'predict.workers',
        one / two,
        'x',
        f'one process on one core, {one:.0f} s for 95 raw frames of 2048 × 2048 px with {n} colonies '
        f'(detection, classes, maps, page; HRNet, 128 px)',
        1.7,
        'higher',
    )
    _, few = command(run, d / 'many' / 'raw' / 'P1-A1', d / 'few', 1)
    show('predict.memory', many, 'MB', f'peak of one process, {n} colonies in 95 frames', better='lower')
    show(
        'predict.memory.growth',
        many - few,
        'MB',
        f'a quarter of the frames, {len(pd.read_csv(d / "few" / "colonies.csv"))} colonies',
        100,
        'lower',
    )


def null():
    p = EXPERIMENTS['small'] | dict(
        seed=5, overlap=0.7, effect=0.0, pixel_size=0.8, plates=1, wells=300, frames=3, interval_h=24.0
    )
    courses = joblib.Parallel(2)(joblib.delayed(state_course)(p, r) for r in plan_wells(p).itertuples())
    wells = well_fractions(pd.concat(courses), CLASSES)
    for n, plates in ((3, 1), (6, 1), (6, 3)):
        found = null_tests(wells, 1000, n, plates)
        show(
            f'predict.null.{n}_replicates' + f'_on_{plates}_plates' * (plates > 1),
            float((found < 0.05).to_numpy().mean()),
            'share',
            f'p < 0.05 in 1,000 tables of simulated wells without an effect; by class '
            f'{", ".join(f"{c} {v:.3f}" for c, v in (found < 0.05).mean().items())}',
            0.0635,
            'lower',
        )


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        save_split(simulate_dataset(d / 'cells', 60), labeled='rest', test=0.3, folds=1)
        runs = {
            k: train(
                ExperimentConfig(method='supervised', epochs=1, steps=4, batch_size=8, **v),
                d / 'cells',
                d / k.split(' px')[0].replace(', ', '_').replace(' and ', '_').lower(),
            )
            for k, v in NETWORKS.items()
        }
        frame(d, runs)
        workers(d, runs['HRNet, 128 px'])
    null()


if __name__ == '__main__':
    main()
