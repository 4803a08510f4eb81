"""The preset `best` against `quick`, and what the unlabelled images add to it (configs/best.yaml).

`python benchmarks/long_best.py FOLDER` keeps datasets and runs in FOLDER and resumes there. Simulated colonies, and
real cells where IPB_MLCP names the folder of the imaging-flow cells. Three folds with 30 % of the tracks (or cells)
in T; the recalls are those of all test colonies together, intervals come from a bootstrap over tracks (or cells)."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show

from ipb_nb.dataset import ColonyDataset
from ipb_nb.importers import import_folders
from ipb_nb.run import read_run
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split
from ipb_nb.sweep import sweep

GRID = Path(__file__).parent.parent / 'configs' / 'best.yaml'
LATE = ('Metaphase', 'Anaphase', 'Telophase')  # 111 cells together


def simulated(folder):
    save_split(simulate_dataset(folder, 1200, seed=21, workers=2), by='track', labeled=0.1, test=0.3, folds=3)


def flow(folder):
    classes = folder.parent / 'flow_classes'
    for f in Path(os.environ['IPB_MLCP']).glob('*/*.png'):
        to = classes / ('Late' if f.parent.name in LATE else f.parent.name)
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to / f'{f.parent.name}-{f.name}')
    save_split(import_folders(classes, folder), labeled=0.1, test=0.3, folds=3)


def counts(ds, runs, network):
    "Of every unit and class the colonies and those that were found: (units, classes) each."
    p = pd.concat([r.predictions[r.predictions.network == network] for r in runs])
    colonies = ds.colonies.loc[p.colony_id]
    unit = pd.factorize(np.where(colonies.track_id != '', colonies.track_id, colonies.index))[0]
    actual = pd.Categorical(p.actual, ds.classes).codes
    total, found = np.zeros((unit.max() + 1, len(ds.classes))), np.zeros((unit.max() + 1, len(ds.classes)))
    np.add.at(total, (unit, actual), 1)
    np.add.at(found, (unit, actual), (p.actual == p.predicted).to_numpy())
    return total, found


def recalls(total, found, chosen=slice(None)):
    return found[chosen].sum(0) / total[chosen].sum(0)


def interval(differ, n, repeats=2000):
    "The 95 % interval of a statistic of units drawn with replacement."
    rng = np.random.default_rng(0)
    return np.nanpercentile([differ(rng.integers(n, size=n)) for _ in range(repeats)], [2.5, 97.5])


def report(data, folder):
    ds, runs = ColonyDataset(folder / data), {}
    for out in sorted((folder / f'{data}_runs').glob('*/run.json')):
        run = read_run(out.parent)
        runs.setdefault(out.parent.name.rpartition('-fold')[0], []).append(run)
    found = {row: counts(ds, of, 'student') for row, of in runs.items()}
    rarest = int(found['best-supervised'][0].sum(0).argmin())
    for row, of in runs.items():
        each = ', '.join(f'{r.scores("student")["macro_tpr"]:.3f}' for r in of)
        r = recalls(*found[row])
        show(f'best.{data}.{row}.macro_tpr', r.mean(), 'recall', f'the other rows; by fold {each}')
        show(f'best.{data}.{row}.tpr.{ds.classes[rarest]}', r[rarest], 'recall', 'the other rows; the rarest class')
        if 'student_patch' in of[0].networks:
            patch = recalls(*counts(ds, of, 'student_patch')).mean()
            show(f'best.{data}.{row}.patch.macro_tpr', patch, 'recall', 'the colony figure of this row')
        show(f'best.{data}.{row}.seconds', np.mean([o.info['seconds'] for o in of]), 's', 'two runs at a time')
    for row, base in (
        ('best-supervised', 'quick-supervised'),
        ('best-FixMatch', 'best-supervised'),
        ('best-IPB', 'best-supervised'),
        ('best-IPB', 'quick-supervised'),
    ):
        a, b = found[row], found[base]

        def differ(chosen, a=a, b=b):
            return recalls(*a, chosen).mean() - recalls(*b, chosen).mean()

        low, high = interval(differ, len(a[0]))
        against = f'{base}; 95 % interval {low:+.3f} to {high:+.3f}, {len(a[0])} units'
        show(f'best.{data}.{row}.gain_over.{base}', differ(slice(None)), 'recall', against)


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    for data, make in dict(simulated=simulated, flow=flow).items():
        if make is flow and not os.environ.get('IPB_MLCP'):
            continue
        if not (folder / data / 'splits').exists():
            make(folder / data)
        sweep(GRID, folder / data, folder / f'{data}_runs', workers=2)
        report(data, folder)
