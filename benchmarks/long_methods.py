"""One fold of simulated colonies, and of real cells where IPB_BCCD names them: what balancing and meta pseudo labels
each add to a teacher's labels.

`python benchmarks/long_methods.py simulated` runs one of the two. One fold each: to look at, not to choose by."""

import os
import sys
import tempfile
from pathlib import Path

import pandas as pd
from figures import show

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_json
from ipb_nb.detect import detect_dataset
from ipb_nb.experiment import train
from ipb_nb.importers import import_voc
from ipb_nb.simulate import simulate_experiment
from ipb_nb.split import save_split

ROWS = dict(
    supervised=dict(method='supervised'),
    frozen=dict(teacher_frozen=True),
    mpl=dict(balance=False),
    ipb=dict(),
    ipb_confident=dict(balance_on='confident'),
)


def simulated(folder):
    simulate_experiment(folder / 'exp', preset='small', seed=0)
    ds = detect_dataset(folder / 'exp' / 'raw', folder / 'simulated', truth=folder / 'exp' / 'truth', refine=True)
    save_split(ds, by='track', labeled=0.2, test=0.2, folds=5)  # (there are too few tracks of Diff for a tenth)
    return ds, 3  # the fold with most colonies of the rarest class in T: 27, and 8 in L


def bccd(folder):
    ds = import_voc(os.environ['IPB_BCCD'], folder / 'bccd', classes=['Platelets', 'RBC', 'WBC'])
    save_split(ds)
    return ds, 0


def figures(data, row, out):
    m, history = read_json(out / 'metrics.json'), pd.read_csv(out / 'history.csv')
    against = f'the other rows of this fold; {m["n_test"]} in T; chosen on {m["selected_on"]}'
    v = history[history.stage == 'student'].macro_tpr
    if m['selected_on'] == 'V':
        show(
            f'methods.{data}.{row}.valid',
            float(v.tail(5).mean()),
            'recall',
            'the other rows; V, mean of the last five epochs',
        )
    for net in ('student_selected', 'student', 'teacher_pretrained', 'teacher'):
        if net not in m:
            continue
        for figure in ('macro_tpr', 'macro_precision'):
            show(
                f'methods.{data}.{row}.{net}.{figure}',
                m[net][figure],
                figure.split('_')[1].replace('tpr', 'recall'),
                against,
            )
    for figure, unit in (('tpr', 'recall'), ('precision', 'precision')):
        for c, value in m['student'][figure].items():
            show(f'methods.{data}.{row}.student.{figure}.{c}', value, unit, against)
    show(f'methods.{data}.{row}.seconds', read_json(out / 'run.json')['seconds'], 's', 'the other rows; one thread')
    if 'mpl_to_uda' in history:
        show(
            f'methods.{data}.{row}.mpl_to_uda',
            float(history.mpl_to_uda.mean()),
            'ratio',
            'the gradient of the consistency term, norms at the logits',
        )
    if not (out / 'balance.csv').exists():
        return
    b = pd.read_csv(out / 'balance.csv')
    for c, o in b.groupby('class'):
        for k in ('share', 'accuracy', 'accuracy_single', 'accuracy_multi'):
            show(f'methods.{data}.{row}.pseudo_{k}.{c}', float(o[k].mean()), 'share', 'mean over epochs')
        show(
            f'methods.{data}.{row}.confident_share.{c}',
            float(o.confident.sum() / max(b.confident.sum(), 1)),
            'share',
            'of the draws whose label was confident when they were drawn; 1/classes if they were balanced',
        )
        show(
            f'methods.{data}.{row}.taught.{c}',
            float(o.taught.sum() / max(b.taught.sum(), 1)),
            'share',
            'of the patches that passed the mask in all epochs; 1/classes if they were balanced',
        )


with tempfile.TemporaryDirectory() as d:
    for data in sys.argv[1:] or ['simulated', *(['bccd'] if os.environ.get('IPB_BCCD') else [])]:
        ds, fold = dict(simulated=simulated, bccd=bccd)[data](Path(d))
        for row, kwargs in ROWS.items():
            figures(
                data, row, train(ExperimentConfig(**kwargs, fold=fold, threads=1), ds.path, Path(d) / f'{data}-{row}')
            )
