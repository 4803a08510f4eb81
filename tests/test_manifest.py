"Pictures that are no longer as they were written, and what notices it."

import os
import re
import shutil

import cv2
import pandas as pd
import pytest

from ipb_nb.compare import compare, notes
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import check_run
from ipb_nb.files import sha256
from ipb_nb.importers import import_folders
from ipb_nb.manifest import check_pictures, pictures_sha256, renew_manifest, verify_pictures
from ipb_nb.report import methods
from ipb_nb.split import ipb_dataset


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / 'copy')


def invert(f, keep_time=False):
    "As the attack did it: the same size in pixels, other content."
    before = f.stat()
    raw = bytearray(f.read_bytes())
    if keep_time:  # and the same number of bytes
        raw[-20] ^= 255
        f.write_bytes(raw)
        os.utime(f, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        cv2.imwrite(str(f), 255 - cv2.imread(str(f), 0))


def test_an_import_lists_what_it_wrote(dataset):
    table, ds = pd.read_csv(dataset / 'manifest.csv', dtype=str), ColonyDataset(dataset)
    assert table.file.tolist() == [*ds.colonies.image, *ds.colonies['mask']]
    for r in table.itertuples():
        s = (dataset / r.file).stat()
        assert (r.sha256, r.size, r.mtime_ns) == (sha256(dataset / r.file), str(s.st_size), str(s.st_mtime_ns))


def test_changed_missing_and_foreign_pictures(copy, tiny, tmp_path, capsys):
    cfg, at = ExperimentConfig(**tiny), lambda k: copy / ColonyDataset(copy).colonies.image.iloc[k]
    verify_pictures(copy)
    assert '172 pictures are as manifest.csv lists them' in capsys.readouterr().out
    check_run(cfg, copy, tmp_path / 'run')
    invert(first := at(0))
    with pytest.raises(InputError, match=f'pictures: 1 changed .images/{first.name}.; expected crops and masks as'):
        check_run(cfg, copy, tmp_path / 'run')
    invert(at(1), keep_time=True)  # this one only the full check finds
    with pytest.raises(InputError, match='pictures: 1 changed'):
        check_pictures(copy)
    shutil.copy(first, stray := copy / 'images' / 'stray.png')
    gone = copy / ColonyDataset(copy).colonies['mask'].iloc[2]
    gone.unlink()
    capsys.readouterr()
    with pytest.raises(InputError, match=r'found 4 pictures \(above\)'):
        ipb_dataset(copy, verify=True)
    said = capsys.readouterr().out.splitlines()
    names = [first, copy / 'images' / said[1].rpartition('/')[2], gone, stray]
    kinds = ['changed', 'changed', 'missing', 'unlisted']
    assert said == [f'{k}: {f.relative_to(copy).as_posix()}' for k, f in zip(kinds, names)]
    with pytest.raises(InputError, match='no such file; expected a picture'):
        renew_manifest(copy)


def test_a_row_by_hand_is_not_listed(copy):
    table = pd.read_csv(copy / 'colonies.csv', keep_default_na=False)
    table.iloc[:1].assign(colony_id='own', image='images/own.png').to_csv(
        copy / 'colonies.csv', mode='a', header=False, index=False
    )
    shutil.copy(copy / table.image[0], copy / 'images' / 'own.png')
    with pytest.raises(InputError, match=r'pictures: 1 unlisted \(images/own.png\)'):
        check_pictures(copy)
    ipb_dataset(copy, write_manifest=True, verify=True)
    check_pictures(copy)
    table.iloc[1:].to_csv(copy / 'colonies.csv', index=False)  # a colony that is taken out is no change
    check_pictures(copy)


def test_an_addition_vouches_for_its_own_pictures_alone(class_folders, tmp_path):
    raw = shutil.copytree(class_folders / 'fine', tmp_path / 'raw' / 'fine').parent
    ds = import_folders(raw, tmp_path / 'ds')
    invert(f := ds.path / ds.colonies.image.iloc[0])
    import_folders(class_folders, ds.path, add=True, classes=['fine', 'middle', 'coarse'])
    assert len(pd.read_csv(ds.path / 'manifest.csv')) == 2 * 86
    with pytest.raises(InputError, match=f'pictures: 1 changed .images/{f.name}.'):
        check_pictures(ds.path)


def test_a_dataset_without_a_manifest(copy, class_folders, tiny, tmp_path):
    (copy / 'manifest.csv').unlink()
    check_run(ExperimentConfig(**tiny), copy, tmp_path / 'run')
    with pytest.raises(InputError, match='manifest.csv: found no such file; .* ipb-dataset DATASET --write_manifest'):
        ipb_dataset(copy, verify=True)
    import_folders(class_folders, copy, add=True, prefix='again-')
    assert not (copy / 'manifest.csv').exists() and pictures_sha256(copy) is None


def test_the_report_says_that_pictures_have_changed(dataset, run, tmp_path):
    assert read_json(run / 'run.json')['pictures_sha256'] == pictures_sha256(dataset)
    copy, own = shutil.copytree(dataset, tmp_path / 'data'), shutil.copytree(run, tmp_path / 'runs' / 'run')
    info = read_json(own / 'run.json')
    write_json(info | dict(data='../../data'), own / 'run.json')
    said = lambda: '\n'.join(notes(compare(own)))
    assert 'has changed' not in said() and info['pictures_sha256'] in methods(compare(own))
    invert(copy / ColonyDataset(copy).colonies.image.iloc[0])
    assert re.search(r'The dataset has changed since the runs were made \(crops or masks\)', said())
    renew_manifest(copy)  # listed as they are, they are still others
    assert '(crops or masks)' in said()
