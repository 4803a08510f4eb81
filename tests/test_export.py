"Exports, read by what they are made for."

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.experiment import train
from ipb_nb.export import export_student, package_errors, write_onnx
from ipb_nb.predict import predict
from ipb_nb.student import load_student

BIN = Path(sys.executable).parent


@pytest.fixture(scope='module')
def run(once, simulated):
    cfg = dict(method='supervised', scales='64,32', epochs=1, steps=10, batch_size=8, threads=1)
    return once('two_scales', lambda d: train(ExperimentConfig(**cfg), simulated, d / 'run')) / 'run'


@pytest.fixture(scope='module')
def packed(once, run):
    "The package that the command makes."

    def make(d):
        options = ['--out', d / 'bioimageio', '--format', 'bioimageio', '--author', 'A. B, C. D']
        subprocess.run([BIN / 'ipb-export', run, *options], check=True, capture_output=True)

    return once('package', make) / 'bioimageio' / 'package.zip'


def test_all_formats(run, packed, tmp_path):
    for f in ('safetensors', 'onnx'):
        export_student(run, tmp_path / f, format=f)
    for folder in (tmp_path / 'safetensors', tmp_path / 'onnx', packed.parent):
        card = (folder / 'README.md').read_text()
        assert '## Validation' in card and str(folder.parent) not in card and str(run) not in card
    assert package_errors(packed) == []
    zoo = subprocess.run([BIN / 'bioimageio', 'test', packed], capture_output=True, text=True)  # the zoo's own command
    assert zoo.returncode == 0, zoo.stdout + zoo.stderr
    assert {'rdf.yaml', 'student.onnx', 'README.md'} <= set(zipfile.ZipFile(packed).namelist())


def test_what_is_given_away_predicts_the_same(run, few, tmp_path):
    export_student(run, tmp_path / 'student')
    ds = few('cells', 15)
    predict(run, ds.path, tmp_path / 'a')
    predict(tmp_path / 'student', ds.path, tmp_path / 'b')
    assert (tmp_path / 'a' / 'colonies.csv').read_bytes() == (tmp_path / 'b' / 'colonies.csv').read_bytes()


@pytest.mark.parametrize('arch, scales', [('hrnet', '64'), ('hrnet', '64,32'), ('vgg19', '32')])
def test_every_network_becomes_onnx(run, arch, scales, tmp_path):
    import torch
    from safetensors.torch import save_file

    from ipb_nb.model import create_model

    torch.manual_seed(0)
    width, sides = 0.25, [int(s) for s in scales.split(',')]
    save_file(
        {k: v.contiguous() for k, v in create_model(arch, sides, 4, width=width).state_dict().items()},
        tmp_path / 'student.safetensors',
    )
    write_json(read_json(run / 'model.json') | dict(arch=arch, scales=sides, width=width), tmp_path / 'model.json')
    x = np.random.default_rng(0).integers(0, 256, (5, sides[0], sides[0]), np.uint8)
    assert write_onnx(load_student(tmp_path, 'cpu'), tmp_path / 'student.onnx', x) <= 1e-4


def test_a_package_that_says_something_else_fails(packed, tmp_path):
    "The zoo's test is a test: with other numbers to compare with, it fails."
    with zipfile.ZipFile(packed) as z:
        z.extractall(tmp_path / 'open')
    np.save(tmp_path / 'open' / 'probabilities.npy', 1 - np.load(tmp_path / 'open' / 'probabilities.npy'))
    text = (tmp_path / 'open' / 'rdf.yaml').read_text()
    (tmp_path / 'open' / 'rdf.yaml').write_text('\n'.join(l for l in text.splitlines() if 'sha256' not in l))
    assert package_errors(tmp_path / 'open' / 'rdf.yaml')


def test_bad_input(run, tmp_path):
    with pytest.raises(InputError, match='format: found pickle'):
        export_student(run, tmp_path / 'x', 'pickle')
    with pytest.raises(InputError, match='author: found nobody'):
        export_student(run, tmp_path / 'x', 'bioimageio')
    with pytest.raises(InputError, match='name: found x; expected Value should have at least 5 items'):
        export_student(run, tmp_path / 'x', 'bioimageio', authors=['A. Author'])
    with pytest.raises(InputError, match='found mine'):
        export_student(run, tmp_path / 'x', 'bioimageio', 'colonies', ['A. Author'], 'mine')
    with pytest.raises(InputError, match='no model.json'):
        export_student(tmp_path, tmp_path / 'x')
    (tmp_path / 'there').mkdir()
    with pytest.raises(InputError, match='there: found an existing file or folder'):
        export_student(run, tmp_path / 'there')
    shutil.copytree(run, tmp_path / 'half')
    (tmp_path / 'half' / 'student.safetensors').write_bytes(b'x')
    with pytest.raises(InputError):
        export_student(tmp_path / 'half', tmp_path / 'x')
    assert [f.name for f in tmp_path.iterdir() if f.name not in ('there', 'half')] == []
