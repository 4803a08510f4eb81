"Fold 0 of the blood-smear cells (IPB_BCCD), preset quick, a tenth labelled: seconds and macro recall of IPB, MPL without balancing and supervised only."
import os
import sys
import tempfile
from pathlib import Path

from figures import show
from ipb_nb.core import read_json
from ipb_nb.dataset import import_voc, save_split
from ipb_nb.experiment import ExperimentConfig, train_in_notebook

if not os.environ.get('IPB_BCCD'): sys.exit('IPB_BCCD: found nothing; expected the folder of the BCCD dataset (Annotations/, JPEGImages/). Set it.')


with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    save_split(import_voc(os.environ['IPB_BCCD'], d/'cells'), labeled=.1, test=.1, folds=10)
    for name, fields in dict(ipb={}, mpl=dict(balance=False), supervised=dict(method='supervised')).items():
        out = train_in_notebook(ExperimentConfig(**fields), d/'cells', d/name)
        m = read_json(out/'metrics.json')
        show(f'bccd.seconds.{name}', read_json(out/'run.json')['seconds'], 's', 'the limit of 15 minutes', 900 if name == 'ipb' else None)
        for net in [n for n in m if isinstance(m[n], dict)]:
            show(f'bccd.macro_tpr.{name}.{net}', round(m[net]['macro_tpr'], 4), 'recall', 'the other rows of this run', .9 if (name, net) == ('ipb', 'student') else None)
            for c, v in m[net]['tpr'].items(): show(f'bccd.tpr.{name}.{net}.{c}', round(v, 3), 'recall', 'the other rows of this run')
