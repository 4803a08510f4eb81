"""What `--init self` adds to features that know photographs: macro recall of a logistic regression on the features of
all layers but the last, mean of ten patches a colony, before and after a run's stage of learning from pairs of patches
(preset best, 64 pairs), of all colonies outside T.

`python benchmarks/long_pretraining.py FOLDER [DATASET …]`, of the datasets of long_evidence.py; some eight minutes of
one core each. 30 % in T; the mean over 24 draws of 20 labels a class, the same before and after."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import show
from long_evidence import DATASETS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.decision import several_patches
from ipb_nb.metric import macro_difference
from ipb_nb.split import Split, save_split
from ipb_nb.training import Training, run_loaders

LABELS, DRAWS, SEED = 20, 24, 7


@torch.no_grad()
def features(net, dl):
    "Means over each colony's patches, (n, features)."
    found = dl.per_colony(torch.cat([net.eval().features(x).float() for x, _ in dl])).numpy()
    net.train()
    return found


def drawn(y, in_t, number, seed):
    "So many of each class, of those outside T."
    rng, own = np.random.default_rng(seed), [np.flatnonzero((y == c) & ~in_t) for c in np.unique(y)]
    return np.concatenate([rng.choice(o, min(number, len(o)), False) for o in own])


def hits(x, y, in_t):
    "How often each colony of T gets its class, over the draws of labels."
    right = np.zeros(in_t.sum())
    for draw in range(DRAWS):
        chosen = drawn(y, in_t, LABELS, draw)
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(x[chosen], y[chosen])
        right += fitted.predict(x[in_t]) == y[in_t]
    return right / DRAWS


def prepared(folder, name):
    """A run that has not begun, its network, a loader of all colonies that have a class, their units and classes, and
    which of them are in T."""
    if not (folder / name / 'splits').exists():
        DATASETS[name][0](folder / name)
    ds = ColonyDataset(folder / name)
    by = 'track' if name == 'simulated' else 'group'
    if not (ds.path / 'splits' / 'pairs.csv').exists():
        save_split(ds, 'pairs', by=by, labeled='rest', test=0.3, valid=0, folds=1, seed=SEED)
    part = Split(ds, 'pairs').fold(0)
    part = part[part.label.isin(ds.classes)]
    seed_all(SEED, 1)
    cfg = ExperimentConfig(preset='best', method='supervised', init='self', pairs=64, split='pairs', threads=1)
    training = Training(cfg, ds, run_loaders(cfg, ds), folder / f'{name}_run')
    dl = several_patches(training.loaders.labeled.test_dl(part.index.tolist(), with_labels=True), cfg.test_patches)
    y = part.label.map({c: k for k, c in enumerate(ds.classes)}).to_numpy()
    unit = ds.colonies['track_id' if by == 'track' else by][part.index].rename(by)
    return training, training.live['student'], dl, unit, y, part.part.eq('T').to_numpy(copy=True)


def main(folder, name):
    variable = DATASETS[name][1]
    if variable and not os.environ.get(variable):
        return print(f'{name}: {variable} names no folder', file=sys.stderr)
    training, net, dl, unit, y, in_t = prepared(folder, name)
    found = [hits(features(net, dl), y, in_t)]
    training.fit('pretext')
    found.append(hits(features(net, dl), y, in_t))
    by, of_t = unit.name, (unit[in_t].to_numpy(), y[in_t])
    total = pd.crosstab(*of_t).to_numpy()
    before, after = (pd.crosstab(*of_t, right, aggfunc='sum').fillna(0).to_numpy() for right in found)
    of = f'{training.cfg.steps} steps of {training.cfg.pairs} pairs; {int(total.sum())} in T'
    for when, right in (('before', before), ('after', after)):
        show(f'pretraining.{name}.{when}', (right.sum(0) / total.sum(0)).mean(), 'recall', of)
    d = macro_difference(total, after, before)
    against = f'the features before; 95 % interval over {by}s {d["low"]:+.3f} to {d["high"]:+.3f}'
    show(f'pretraining.{name}.gain', d['difference'], 'recall', against)


if __name__ == '__main__':
    for name in sys.argv[2:] or DATASETS:
        main(Path(sys.argv[1]), name)
