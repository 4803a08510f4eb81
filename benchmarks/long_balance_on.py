"""Should balancing count and draw all pseudo-labels or the confident ones only? Judged on V, over folds; T is not looked at.

`python benchmarks/long_balance_on.py crops` runs one of the two datasets; bccd needs its folder in IPB_BCCD."""
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from figures import show
from ipb_nb.dataset import import_voc, save_split
from ipb_nb.experiment import ExperimentConfig, train
from ipb_nb.simulate import simulate_dataset


def crops(folder):
    ds = simulate_dataset(folder/'crops', 2000, seed=1, workers=os.cpu_count())
    save_split(ds, by='track', labeled=.15, test=.15, valid=.33, folds=3)
    return ds, 3, (.65, .95)


def bccd(folder):
    ds = import_voc(os.environ['IPB_BCCD'], folder/'bccd', classes=['Platelets', 'RBC', 'WBC'])
    save_split(ds, labeled=.2, valid=.33, folds=2)
    return ds, 2, (.95,)


def valid_recall(out):
    "Macro recall on V, mean of the last five epochs."
    h = pd.read_csv(out/'history.csv')
    return h[h.stage == 'student'].macro_tpr.tail(5).mean()


with tempfile.TemporaryDirectory() as d:
    for data in sys.argv[1:] or ['crops', *(['bccd'] if os.environ.get('IPB_BCCD') else [])]:
        ds, folds, thresholds = dict(crops=crops, bccd=bccd)[data](Path(d))
        for threshold in thresholds:
            tpr = {}
            for on in ('all', 'confident'):
                outs = [train(ExperimentConfig(balance_on=on, threshold=threshold, finetune=0, fold=f, threads=1), ds.path, Path(d)/f'{data}-{on}-{threshold}-{f}') for f in range(folds)]
                tpr[on], b = np.array([valid_recall(o) for o in outs]), pd.concat([pd.read_csv(o/'balance.csv') for o in outs])
                here, against = f'balance_on.{data}.{threshold:g}.{on}', f'the other setting; V, mean of the last five epochs of {folds} folds'
                show(f'{here}.macro_tpr', float(tpr[on].mean()), 'recall', against)
                for c, n in (b.groupby('class').taught.sum()/b.taught.sum()).items(): show(f'{here}.taught.{c}', float(n), 'share', 'of the patches that passed the mask in all epochs; 1/classes if they were balanced')
            gain = tpr['confident']-tpr['all']
            show(f'balance_on.{data}.{threshold:g}.gain', float(gain.mean()), 'recall', f"confident over all, folds {', '.join(f'{g:+.3f}' for g in gain)}")
