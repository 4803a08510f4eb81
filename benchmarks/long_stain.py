"""Cells of a blood smear (IPB_BCCD) in colours and in grey, the same cells in every part: recall of supervised training
by preset best (or PRESET) over five folds, 20 cells of each class labelled.

`python benchmarks/long_stain.py FOLDER`; a run takes some four minutes of one core (PRESET=frozen: two). Runs that are
done stay in FOLDER, and another call goes on."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show
from long_evidence import with_few_labels

from ipb_nb.config import ExperimentConfig
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.importers import import_voc
from ipb_nb.metric import clustered_interval, macro_difference
from ipb_nb.run import read_run
from ipb_nb.split import Split, save_split

FOLDS, LABELS, KINDS = 5, 20, {'rgb': dict(channels='rgb'), 'grey': {}}


def tested(data, out, preset):
    "Predictions of the student on the test sets of all folds."
    tables = []
    for fold in range(FOLDS):
        cfg = ExperimentConfig(preset=preset, method='supervised', split='few', fold=fold)
        run = train(cfg, data, out / f'{fold}', resume=True)
        tables.append(read_run(run).predictions.query('network == "student"'))
    return pd.concat(tables).set_index('colony_id')


def counts(found, pictures, classes):
    "Cells, and those with the right class, of every picture and class."
    right = found.predicted.eq(found.actual)
    total = pd.crosstab(pictures, found.actual).reindex(columns=classes, fill_value=0)
    hits = pd.crosstab(pictures[right], found.actual[right]).reindex(index=total.index, columns=classes, fill_value=0)
    return total.to_numpy(), hits.to_numpy()


def report(found, pictures, classes, preset):
    of, hits = {}, {}
    for kind, table in found.items():
        total, right = counts(table, pictures[table.index], classes)
        of[kind], hits[kind] = total, right
        recall = right.sum(0) / total.sum(0)
        apart = macro_difference(total, right, 0 * right)  # (of the recall itself, from nothing)
        text = f'supervised, {LABELS} labels a class, {FOLDS} folds pooled, {total.sum()} cells; 95 % over pictures '
        text += f"{apart['low']:.3f} to {apart['high']:.3f}"
        show(f'stain.{preset}.{kind}.macro', recall.mean(), 'recall', text)
        for k, name in enumerate(classes):
            low, high = clustered_interval(right[:, k], total[:, k])
            own = f'{total[:, k].sum()} cells; 95 % over pictures {low:.3f} to {high:.3f}'
            show(f'stain.{preset}.{kind}.{name}', recall[k], 'recall', own)
    d = macro_difference(of['rgb'], hits['rgb'], hits['grey'])
    own = f"grey, the same cells; 95 % over pictures {d['low']:+.3f} to {d['high']:+.3f}"
    show(f'stain.{preset}.gain', d['difference'], 'recall', own)


if __name__ == '__main__':
    if not os.environ.get('IPB_BCCD'):
        sys.exit('IPB_BCCD: found nothing; expected the folder of the BCCD dataset. Set it.')
    preset, folder, found = os.environ.get('PRESET', 'best'), Path(sys.argv[1]), {}
    for kind, how in KINDS.items():
        data = folder / kind
        if not (data / 'splits').exists():
            ds = import_voc(os.environ['IPB_BCCD'], data, overwrite=True, **how)
            save_split(ds, labeled='rest', test=1 / FOLDS, folds=FOLDS)
            with_few_labels(ds, Split(ds), 'few', lambda n: LABELS)
        found[kind] = tested(data, folder / f'{preset}-{kind}', preset)
    ds = ColonyDataset(data)
    assert found['rgb'].index.equals(found['grey'].index) and np.all(found['rgb'].actual == found['grey'].actual)
    report(found, ds.colonies.source, ds.classes, preset)
