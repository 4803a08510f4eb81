"Real images, end to end, in a cut-down form."

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.importers import import_voc
from ipb_nb.report import write_report
from ipb_nb.split import save_split


@pytest.fixture(scope='module')
def cells(bccd, tmp_path_factory):
    "Every fourth field with its boxes, copied as links, and the two boxes without area."
    root = tmp_path_factory.mktemp('bccd')
    for d in ('Annotations', 'JPEGImages'):
        (root / 'voc' / d).mkdir(parents=True)
    xmls = sorted((bccd / 'Annotations').glob('*.xml'))
    for f in {*xmls[::4], *(x for x in xmls if x.stem.endswith(('00338', '00343')))}:
        os.symlink(f, root / 'voc' / 'Annotations' / f.name)
        os.symlink(bccd / 'JPEGImages' / f'{f.stem}.jpg', root / 'voc' / 'JPEGImages' / f'{f.stem}.jpg')
    return import_voc(root / 'voc', root / 'cells', classes=['Platelets', 'RBC', 'WBC'])


def test_import(cells):
    assert cells.failures.kind.tolist() == ['skipped', 'skipped']
    assert set(cells.failures.source) == {'BloodImage_00338.xml', 'BloodImage_00343.xml'}
    n = cells.counts
    assert n['RBC'] > 5 * n['WBC'] > 0 and n['multi-label'] > 50
    share = cells.colonies.area_px / ((cells.colonies.y1 - cells.colonies.y0) * (cells.colonies.x1 - cells.colonies.x0))
    assert (
        share.between(0.1, 1).all() and 0.5 < share[cells.colonies.label == 'RBC'].median() < 0.95
    )  # a disk fills 79 % of its box


def test_train_and_report(cells, tmp_path):
    save_split(cells, labeled=0.2, test=0.2, folds=5)
    out = train(
        ExperimentConfig(pretrain_epochs=10, epochs=2, steps=20, finetune=2, batch_size=16, ema=0.0, threads=1),
        cells.path,
        tmp_path / 'run',
    )
    m, balance = read_json(out / 'metrics.json'), pd.read_csv(out / 'balance.csv')
    assert m['teacher_pretrained']['macro_tpr'] > 0.7  # three classes: guessing gives .33
    first = balance[balance.epoch == 0].set_index('class')
    assert first.share['RBC'] > 0.5 and abs(first.draws / first.draws.sum() - 1 / 3).max() < 0.15
    assert write_report(out).stat().st_size > 1e5


def test_the_commands_for_real_images(bccd, tmp_path):
    "Two fields, without annotations of one: the rest is imported and the exit code is 1."
    for d in ('Annotations', 'JPEGImages'):
        (tmp_path / 'voc' / d).mkdir(parents=True)
    for stem in ('BloodImage_00000', 'BloodImage_00001'):
        os.symlink(bccd / 'Annotations' / f'{stem}.xml', tmp_path / 'voc' / 'Annotations' / f'{stem}.xml')
    os.symlink(bccd / 'JPEGImages' / 'BloodImage_00000.jpg', tmp_path / 'voc' / 'JPEGImages' / 'BloodImage_00000.jpg')
    r = subprocess.run(
        [Path(sys.executable).parent / 'ipb-import', tmp_path / 'voc', tmp_path / 'cells'],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 1 and 'BloodImage_00001.jpg: found no such file' in r.stdout
    assert len(ColonyDataset(tmp_path / 'cells')) == 20
