"""What `--init self` adds to features that know photographs: macro recall of a logistic regression on the features of
frozen layers, mean of ten patches a colony, before and after learning from pairs of patches of all colonies outside T.

`python benchmarks/long_pretraining.py FOLDER [DATASET …]`, of the datasets of long_evidence.py; some eight minutes of
one core each. 30 % in T; the mean over 24 draws of 20 labels a class, the same before and after."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from figures import show
from long_evidence import DATASETS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ipb_nb.core import seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.decision import several_patches
from ipb_nb.method import fit_schedule, spread
from ipb_nb.metric import macro_difference
from ipb_nb.model import N_FEATURES, create_model
from ipb_nb.patch import colony_dataloaders, patch_views
from ipb_nb.pretraining import PairDL, PairViews
from ipb_nb.simclr import NTXent, Pretext, pretext_learner, pretext_loaders, projection_head
from ipb_nb.split import Split, save_split

LABELS, DRAWS, SEED = 20, 24, 7  # (the settings below were chosen on imaging-flow cells split with another seed)
STEPS, PAIRS, LR = 400, 64, 0.03


@torch.no_grad()
def features(net, dl):
    "Means over each colony's patches, (n, features)."
    found = dl.per_colony(torch.cat([net.eval().features(x).float() for x, _ in dl])).numpy()
    net.train()
    return found


def hits(x, y, in_t):
    "How often each colony of T gets its class, over the draws of labels."
    right = np.zeros(in_t.sum())
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        own = [np.flatnonzero((y == c) & ~in_t) for c in np.unique(y)]
        chosen = np.concatenate([rng.choice(o, min(LABELS, len(o)), False) for o in own])
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(x[chosen], y[chosen])
        right += fitted.predict(x[in_t]) == y[in_t]
    return right / DRAWS


def learn_from_pairs(net, loaders):
    "Change the network."
    dls = spread(pretext_loaders(loaders, PAIRS, PairDL), STEPS, 4)
    views = PairViews(patch_views(loaders.labeled.train))
    learn = pretext_learner(dls, Pretext(net, projection_head(N_FEATURES)), NTXent(), views)
    with learn.no_bar(), learn.no_logging():
        fit_schedule(learn, 4, LR)


def by_unit(units, y, weight):
    "Sums of the weights, (units, classes)."
    table = np.zeros((units.max() + 1, y.max() + 1))
    np.add.at(table, (units, y), weight)
    return table


def main(folder, name):
    make, variable = DATASETS[name]
    if variable and not os.environ.get(variable):
        return print(f'{name}: {variable} names no folder', file=sys.stderr)
    if not (folder / name / 'splits').exists():
        make(folder / name)
    ds = ColonyDataset(folder / name)
    by = 'track' if name == 'simulated' else 'group'
    if not (ds.path / 'splits' / 'pairs.csv').exists():
        save_split(ds, 'pairs', by=by, labeled='rest', test=0.3, valid=0, folds=1, seed=SEED)
    part = Split(ds, 'pairs').fold(0)
    part = part[part.label.isin(ds.classes)]
    in_t = part.part.eq('T').to_numpy()
    seed_all(SEED, 1)
    loaders = colony_dataloaders(ds, 'pairs', bs=32, labeled_in_u=True, device='cpu')
    dl = several_patches(loaders.labeled.test_dl(part.index.tolist(), with_labels=True), 10)
    y = part.label.map({c: k for k, c in enumerate(ds.classes)}).to_numpy()
    net = create_model('tf_efficientnet_lite0', (64,), len(ds.classes), pretrained=True)
    found = [hits(features(net, dl), y, in_t)]
    learn_from_pairs(net, loaders)
    found.append(hits(features(net, dl), y, in_t))
    units = np.unique(ds.colonies['track_id' if by == 'track' else by][part.index[in_t]], return_inverse=True)[1]
    total = by_unit(units, y[in_t], 1)
    before, after = (by_unit(units, y[in_t], right) for right in found)
    for when, right in (('before', before), ('after', after)):
        recall = (right.sum(0) / total.sum(0)).mean()
        show(f'pretraining.{name}.{when}', recall, 'recall', f'{STEPS} steps of {PAIRS} pairs; {int(total.sum())} in T')
    d = macro_difference(total, after, before)
    against = f'the features before; 95 % interval over {by}s {d["low"]:+.3f} to {d["high"]:+.3f}'
    show(f'pretraining.{name}.gain', d['difference'], 'recall', against)


if __name__ == '__main__':
    for name in sys.argv[2:] or DATASETS:
        main(Path(sys.argv[1]), name)
