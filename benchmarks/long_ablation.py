"""configs/ablation.yaml rehearsed on a CPU: all its rows with the paper's networks at a quarter of their width, patches
of 64 and 32 px instead of 224 and 112 (and 48 instead of 128), 600 steps, two folds of 1,200 simulated colonies.

`python benchmarks/long_ablation.py FOLDER` keeps dataset, grid and runs in FOLDER, resumes there, and writes a report;
some 80 minutes of two cores. It shows that every row runs to its end; so short a training of so narrow a network
says nothing about which row is the best."""

import sys
from pathlib import Path

import yaml
from figures import show

from ipb_nb.report import write_report
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split
from ipb_nb.sweep import sweep

GRID = Path(__file__).parent.parent / 'configs' / 'ablation.yaml'
SCALES = {'224': '64', '112': '32', '128': '48'}


def rehearsal(grid):
    "The grid with smaller patches and networks, fewer steps and folds."
    for row in grid['rows'].values():
        row['scales'] = ','.join(SCALES[s] for s in str(row['scales']).split(','))
    grid['defaults'] |= dict(width=0.25, epochs=20, steps=600, pretrain_epochs=20, pretrain_steps=200)
    return grid | dict(axes=dict(fold=[0, 1]))


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    data = folder / 'colonies'
    if not (data / 'splits').exists():
        ds = simulate_dataset(data, 1200, seed=41, workers=2)
        save_split(ds, by='track', labeled=0.2, test=0.2, folds=4)
    short = folder / 'ablation.yaml'
    short.write_text(yaml.safe_dump(rehearsal(yaml.safe_load(GRID.read_text(encoding='utf-8'))), sort_keys=False))
    runs = folder / 'runs'
    table = sweep(short, data, runs, workers=2)
    undone = table.index[table.state != 'done']
    show('ablation.done', (table.state == 'done').sum(), 'runs', f'all {len(table)}', len(table), 'higher')
    show('ablation.minutes', table.seconds.sum() / 60, 'min', 'none stated; all runs together', better='lower')
    recall = table.recall[table.state == 'done'].astype(float)
    for row, own in recall.groupby(recall.index.str.replace(r'-fold\d+$', '', regex=True), sort=False):
        why = 'the other rows; mean of two folds, a rehearsal of 600 steps'
        show(f'ablation.{row}.macro_tpr', own.mean(), 'recall', why)
    print(write_report(runs))
    if len(undone):
        sys.exit(f'not done: {", ".join(undone)}')
