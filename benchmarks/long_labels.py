"""Fig. 8 with preset frozen: recall against the number of labelled colonies, of IPB, of supervised training and of
supervised training with logit adjustment, with as many steps however few labels there are.

`python benchmarks/long_labels.py FOLDER` keeps dataset and runs in FOLDER, resumes there, and writes the report; some
twenty-five minutes of two cores. 1,200 simulated colonies in five folds by track; T of a fold is the same for all
numbers of labels, U is the rest."""

import sys
from pathlib import Path

import yaml
from figures import show

from ipb_nb.compare import compare
from ipb_nb.metric import macro_difference
from ipb_nb.report import write_report
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split
from ipb_nb.sweep import sweep
from ipb_nb.verdict import unit_counts

SHARES, FOLDS = (0.05, 0.1, 0.2, 0.4), 5
GRID = dict(
    defaults=dict(preset='frozen'),
    axes=dict(split=[f'rest-{share}' for share in SHARES], fold=[*range(FOLDS)]),
    rows=dict(IPB={}, logit_adjusted=dict(method='logit_adjusted'), supervised=dict(method='supervised')),
)


def splits(data):
    "A dataset with a split for each share of labels."
    ds = simulate_dataset(data, 1200, seed=51, workers=2)
    for share in SHARES:
        save_split(ds, f'rest-{share}', by='track', labeled=share, test=0.2, folds=FOLDS)


def report(runs):
    "The recalls of all rows and the gains over supervised training, by share."
    c = compare(runs)
    for share in SHARES:
        found = {row: unit_counts(c, f'{row}-splitrest-{share}')[1:] for row in GRID['rows']}
        parts = c.rows[f'IPB-splitrest-{share}'][0].info['parts']
        for row, (total, right) in found.items():
            against = f'the other numbers of labels; {parts["L"] + parts["V"]} labelled, {total.sum():.0f} in T'
            show(f'labels.{share}.{row}', (right.sum(0) / total.sum(0)).mean(), 'recall', against)
            if row != 'supervised':
                d = macro_difference(total, right, found['supervised'][1])
                interval = f'95 % interval {d["low"]:+.3f} to {d["high"]:+.3f}'
                against = f'supervised; {interval}, {len(total)} {c.units[1]}'
                show(f'labels.{share}.{row}.gain', d['difference'], 'recall', against)


if __name__ == '__main__':
    data, runs = (Path(sys.argv[1]) / name for name in ('colonies', 'runs'))
    if not data.exists():
        splits(data)
    grid = data.parent / 'labels.yaml'
    grid.write_text(yaml.safe_dump(GRID, sort_keys=False))
    sweep(grid, data, runs, workers=2)
    report(runs)
    print(write_report(runs))
