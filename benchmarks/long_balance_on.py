"""Should balancing count and draw all pseudo-labels or the confident ones only? Judged on V, over folds.

T is not looked at."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show

from ipb_nb.config import ExperimentConfig
from ipb_nb.experiment import train
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

FOLDS = 3


def valid_recall(out):
    "Macro recall on V, mean of the last five epochs."
    h = pd.read_csv(out / 'history.csv')
    return h[h.stage == 'student'].macro_tpr.tail(5).mean()


with tempfile.TemporaryDirectory() as d:
    ds = simulate_dataset(Path(d) / 'crops', 2000, seed=1, workers=os.cpu_count())
    save_split(ds, by='track', labeled=0.15, test=0.15, valid=0.33, folds=FOLDS)
    for threshold in (0.65, 0.95):
        tpr = {}
        for on in ('all', 'confident'):
            outs = [
                train(
                    ExperimentConfig(balance_on=on, threshold=threshold, finetune=0, fold=f, threads=1),
                    ds.path,
                    Path(d) / f'{on}-{threshold}-{f}',
                )
                for f in range(FOLDS)
            ]
            tpr[on], b = (
                np.array([valid_recall(o) for o in outs]),
                pd.concat([pd.read_csv(o / 'balance.csv') for o in outs]),
            )
            here, against = (
                f'balance_on.crops.{threshold:g}.{on}',
                f'the other setting; V, mean of the last five epochs of {FOLDS} folds',
            )
            show(f'{here}.macro_tpr', float(tpr[on].mean()), 'recall', against)
            for c, n in (b.groupby('class').taught.sum() / b.taught.sum()).items():
                show(
                    f'{here}.taught.{c}',
                    float(n),
                    'share',
                    'of the patches that passed the mask in all epochs; 1/classes if they were balanced',
                )
        gain = tpr['confident'] - tpr['all']
        show(
            f'balance_on.crops.{threshold:g}.gain',
            float(gain.mean()),
            'recall',
            f"confident over all, folds {', '.join(f'{g:+.3f}' for g in gain)}",
        )
