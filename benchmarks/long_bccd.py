"""Fold 0 of the blood-smear cells (IPB_BCCD), preset quick, a tenth labelled.

Seconds and macro recall of IPB, MPL without balancing and supervised only."""

import os
import sys
import tempfile
from pathlib import Path

from figures import show

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_json
from ipb_nb.experiment import train_in_notebook
from ipb_nb.importers import import_voc
from ipb_nb.split import save_split

if not os.environ.get('IPB_BCCD'):
    sys.exit('IPB_BCCD: found nothing; expected the folder of the BCCD dataset (Annotations/, JPEGImages/). Set it.')


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    save_split(import_voc(os.environ['IPB_BCCD'], d / 'cells'), labeled=0.1, test=0.1, folds=10)
    for name, fields in dict(ipb={}, mpl=dict(balance=False), supervised=dict(method='supervised')).items():
        out = train_in_notebook(ExperimentConfig(**fields), d / 'cells', d / name)
        m = read_json(out / 'metrics.json')
        show(
            f'bccd.seconds.{name}',
            read_json(out / 'run.json')['seconds'],
            's',
            'the limit of 15 minutes',
            900 if name == 'ipb' else None,
        )
        for net in [n for n in m if isinstance(m[n], dict)]:
            show(
                f'bccd.macro_tpr.{name}.{net}',
                round(m[net]['macro_tpr'], 4),
                'recall',
                'the other rows of this run',
                0.9 if (name, net) == ('ipb', 'student') else None,
            )
            for c, v in m[net]['tpr'].items():
                show(f'bccd.tpr.{name}.{net}.{c}', round(v, 3), 'recall', 'the other rows of this run')
