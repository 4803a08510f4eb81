"The way of a patch across modules: the same everywhere, on real masks, through training; damaged and changed files."

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from scipy.ndimage import uniform_filter
from scipy.stats import chisquare, kstest

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, write_png
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.importers import import_voc
from ipb_nb.model import create_model
from ipb_nb.patch import Crops, MultiScalePatchBlock, colony_dataloaders, patch_box, patch_scales, views

PRINT_BOXES = """
import json, sys
from ipb_nb.dataset import ColonyDataset
from ipb_nb.patch import Crops, patch_box, views
import torch
crops = Crops(ColonyDataset(sys.argv[1]))
c = crops(sys.argv[2])
x = torch.arange(64*64, dtype=torch.uint8).view(1, 1, 64, 64)
boxes = [patch_box(c, 64, 7, epoch, draw) for epoch in range(5) for draw in range(3)]
print(json.dumps([boxes, views(x, torch.tensor([12345]), 'strong').sum().item()]))
"""


@pytest.fixture
def own(dataset, tmp_path):
    return ColonyDataset(shutil.copytree(dataset, tmp_path / 'copy', ignore=shutil.ignore_patterns('.cache')))


def test_positions_and_views_in_another_process(dataset):
    "One whose strings have other hashes."
    i = ColonyDataset(dataset).colonies.index[3]
    said = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PRINT_BOXES, dataset, i],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {'PYTHONHASHSEED': '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'},
    )
    boxes, total = json.loads(said.stdout)
    assert len({tuple(b) for b in boxes}) > 10
    c = ColonyDataset(dataset).colony(i)
    assert boxes == [list(patch_box(c, 64, 7, epoch, draw)) for epoch in range(5) for draw in range(3)]
    x = torch.arange(64 * 64, dtype=torch.uint8).view(1, 1, 64, 64)
    assert total == views(x, torch.tensor([12345]), 'strong').sum().item()


def test_positions_are_uniform_on_a_real_mask(bccd, tmp_path):
    """The largest white blood cell.

    Counted by SciPy, 30 strips of admissible corners; over 20 seeds of 2,000 draws, chi-square's p-values are
    themselves uniform."""
    voc = tmp_path / 'voc'
    for d in ('Annotations', 'JPEGImages'):
        (voc / d).mkdir(parents=True)
    for k in range(8):
        os.symlink(bccd / 'Annotations' / f'BloodImage_{k:05d}.xml', voc / 'Annotations' / f'BloodImage_{k:05d}.xml')
        os.symlink(bccd / 'JPEGImages' / f'BloodImage_{k:05d}.jpg', voc / 'JPEGImages' / f'BloodImage_{k:05d}.jpg')
    ds = import_voc(voc, tmp_path / 'cells')
    c = Crops(ds)(ds.colonies.area_px.idxmax())
    for scale in (32, 64):
        h, w = c.shape[0] - scale + 1, c.shape[1] - scale + 1
        share = uniform_filter(c.mask.astype(float), scale, mode='constant', origin=-(scale // 2))[:h, :w]
        ok = np.flatnonzero(share > 0.25 - 1e-9)
        assert len(ok) > 1000
        expected = np.diff(np.ceil(np.arange(31) * len(ok) / 30)) * 2000 / len(ok)
        p = []
        for seed in range(20):
            drawn = np.searchsorted(ok, [y * w + x for y, x, *_ in (patch_box(c, scale, seed, e) for e in range(2000))])
            assert set(drawn) <= set(range(len(ok)))
            p.append(chisquare(np.bincount(drawn * 30 // len(ok), minlength=30), expected).pvalue)
        assert min(p) > 0.001 / 20 and kstest(p, 'uniform').pvalue > 0.01


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_change_nothing(dataset, workers):
    ds = ColonyDataset(dataset)
    batches = []
    for n in (0, workers):
        dl = colony_dataloaders(ds, scales='64,32', bs=8, steps=5, num_workers=n, device='cpu').unlabeled.train
        for dl.epoch in range(2):
            batches.append([b for b in dl])
    for a, b in zip(batches[:2], batches[2:]):
        assert all(torch.equal(x, y) and torch.equal(k, l) for (x, k), (y, l) in zip(a, b))
    assert not torch.equal(batches[0][0][0], batches[1][0][0])


def test_a_run_does_not_depend_on_the_cache(own, run, tiny, tmp_path):
    "Mapped, in memory or without a place to write: the same crops; a file `.cache` stands where the folder should be."
    (own.path / '.cache').write_text('')
    with pytest.warns(UserWarning, match='cannot be written'):
        crops = Crops(own)
    for i in own.colonies.index:
        assert (crops(i).image == own.colony(i).image).all() and (crops(i).mask == own.colony(i).mask).all()
    with pytest.warns(UserWarning, match='cannot be written'):
        new = train(ExperimentConfig(**tiny), own.path, tmp_path / 'run')
    assert (new / 'metrics.json').read_text() == (run / 'metrics.json').read_text()


def test_changed_files_are_read_again(own, capsys):
    i = own.colonies.index[0]
    before = Crops(own)(i).image.copy()
    write_png(255 - own.pixels(i)[0], own.path / 'images' / f'{i}.png')
    assert (Crops(own)(i).image == 255 - before).all() and 'have changed' in capsys.readouterr().out
    assert len(list((own.path / '.cache').glob('*.bin'))) == 1
    (own.path / 'images' / f'{i}.png').write_bytes(b'not a picture')
    with pytest.raises(InputError, match=f'{i}.png: found 13 bytes that cannot be read'):
        Crops(own)


def test_a_cut_cache_is_made_again(own):
    Crops(own)
    (data,) = (own.path / '.cache').glob('*.bin')
    os.truncate(data, data.stat().st_size - 100)
    i = own.colonies.index[-1]
    assert (Crops(own)(i).image == own.colony(i).image).all()


def sum_of_crops(path, sums):
    sums.put(int(Crops(ColonyDataset(path)).data.sum(dtype='int64')))


def test_many_open_one_cache(own, processes):
    "Four processes at once: one reads, all see the same."
    sums = processes.SimpleQueue()
    ps = [processes.Process(target=sum_of_crops, args=(own.path, sums)) for _ in range(4)]
    for p in ps:
        p.start()
    for p in ps:
        p.join()
    assert [p.exitcode for p in ps] == [0] * 4 and len({sums.get() for _ in ps}) == 1
    assert len(list((own.path / '.cache').glob('*.bin'))) == 1


@pytest.mark.parametrize(
    'arch, width, scales', [('hrnet', 0.25, '64,48'), ('vgg19', 0.125, '64,32'), ('test_resnet', 1.0, '32')]
)
def test_every_network_learns_from_every_block(dataset, arch, width, scales):
    ds = ColonyDataset(dataset)
    labels = ds.labels().label
    sure = labels.index[labels.isin(ds.classes)].tolist()
    block = DataBlock(blocks=(MultiScalePatchBlock(scales), CategoryBlock), get_x=Crops(ds), get_y=lambda i: labels[i])
    dls = block.dataloaders(sure, bs=8, device='cpu', num_workers=0)
    learn = Learner(dls, create_model(arch, scales, len(ds.classes), width=width), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01)
    assert dls.train.epoch == 1
    p, y = learn.get_preds()
    assert p.shape == (len(dls.valid.items), 3) and torch.isfinite(p).all()


def test_a_run_in_bfloat16_with_other_views(dataset, run, tiny, tmp_path):
    "amp, strong, small, width and µm reach the networks; the feedback is not lost to rounding."
    out = train(
        ExperimentConfig(
            **tiny | dict(amp=True, strong='randaug', small='enlarge', arch='hrnet', width=0.125, threshold=0.0)
        ),
        dataset,
        tmp_path / 'run',
    )
    m, model = read_json(out / 'metrics.json'), read_json(out / 'model.json')
    assert model['width'] == 0.125 and model['small'] == 'enlarge' and 0 <= m['student']['macro_tpr'] <= 1
    h = [line.split(',') for line in (out / 'history.csv').read_text().splitlines()]
    at = h[0].index('h')
    assert any(float(r[at]) != 0 for r in h[1:] if r[at])


def test_scales_in_um(own, tiny, tmp_path):
    info = read_json(own.path / 'dataset.json')
    with pytest.raises(InputError, match='pixel_size: found nothing'):
        train(ExperimentConfig(**tiny | dict(scales='25um')), own.path, tmp_path / 'run')
    (own.path / 'dataset.json').write_text(json.dumps(info | dict(pixel_size=0.8)))
    out = train(ExperimentConfig(**tiny | dict(scales='25um')), own.path, tmp_path / 'run')
    assert read_json(out / 'model.json')['scales'] == [32] and read_json(out / 'run.json')['config']['scales'] == '32'


@pytest.mark.long
def test_a_compiled_run(dataset, tiny, tmp_path):
    """The teacher is trained the same to rounding.

    (Later a label that is nearly a tie may fall to the other side, so students differ.)"""
    import pandas as pd

    outs = [
        train(ExperimentConfig(**tiny | dict(compile=c, amp=False)), dataset, tmp_path / f'run{c}')
        for c in (False, True)
    ]
    a, b = (pd.read_csv(o / 'predictions.csv').query('network == "teacher_pretrained"') for o in outs)
    p = [c for c in a if c.startswith('p_')]
    assert np.abs(a[p].to_numpy() - b[p].to_numpy()).max() < 0.002
    assert 0 <= read_json(outs[1] / 'metrics.json')['student']['macro_tpr'] <= 1


@pytest.mark.long
def test_the_feedback_of_a_compiled_network():
    from ipb_nb.mpl import exact_feedback, taylor_feedback

    torch.manual_seed(0)
    plain, compiled = (create_model('test_resnet', '32', 3, compile=c) for c in (False, True))
    compiled.load_state_dict(plain.state_dict())
    x, y, g = (
        torch.randn(8, 1, 32, 32),
        torch.randint(3, (8,)),
        [torch.randn_like(p) * 0.01 for p in plain.parameters()],
    )
    h = []
    for net in (plain, compiled):
        net(x)  # an ordinary training pass first
        before = {k: v.clone() for k, v in net.state_dict().items()}
        h.append([f(net, x, y, g, 0.1).item() for f in (exact_feedback, taylor_feedback)])
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        net(x)
        assert not torch.equal(net.norm.running_mean, before['norm.running_mean'])
    assert np.allclose(*h, rtol=5e-3)


def test_a_dataset_without_unlabelled_colonies_trains_the_baseline(class_folders, tiny, tmp_path):
    from ipb_nb.importers import import_folders
    from ipb_nb.split import save_split

    root = shutil.copytree(class_folders, tmp_path / 'cells')
    for d in ('multi-label', 'unlabelled'):
        shutil.rmtree(root / d)
    ds = import_folders(root, tmp_path / 'data')
    save_split(ds, labeled='rest', test=0.25, folds=2)
    assert colony_dataloaders(ds, scales='32', device='cpu').unlabeled is None
    out = train(ExperimentConfig(**tiny | dict(method='supervised')), ds.path, tmp_path / 'run')
    assert read_json(out / 'run.json')['state'] == 'done'
    with pytest.raises(InputError, match='no colony in the unlabelled set'):
        train(ExperimentConfig(**tiny), ds.path, tmp_path / 'mpl')


@pytest.mark.parametrize('scales', ['112,224', '0', 'abc', ''])
def test_scales_that_are_none(scales):
    with pytest.raises(InputError, match='scales: found .* largest first'):
        patch_scales(scales)


def test_scales_of_loaders_are_checked(dataset):
    ds = ColonyDataset(dataset)
    with pytest.raises(InputError, match='pixel_size: found nothing'):
        patch_scales('180um')
    with pytest.raises(
        InputError, match=r'scales: found 1024 px; expected at most \d+ px, the side of .* with its margin'
    ):
        colony_dataloaders(ds, scales=(1024, 64))
    with pytest.raises(InputError, match='small: found stretch; expected context or enlarge'):
        colony_dataloaders(ds, scales='32', small='stretch')
