"Apple's GPUs, on machines without one: what is chosen, what may reach them, and which operations they have."

import traceback
from pathlib import Path

import pytest
import torch
import yaml
from fastai.torch_core import defaults
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ipb_nb import doctor, patch
from ipb_nb.checkpoint import random_state, set_random_state
from ipb_nb.config import ExperimentConfig
from ipb_nb.distributed import compute_device
from ipb_nb.experiment import train
from ipb_nb.jobs import starts_afresh
from ipb_nb.method import METHODS
from ipb_nb.model import autocast, bf16_pays
from ipb_nb.patch import colony_dataloaders
from ipb_nb.dataset import ColonyDataset
from ipb_nb.student import load_student

MPS, CPU = torch.device('mps'), torch.device('cpu')
ON_CPU = {  # where float64 is used, for tensors of NumPy's numbers that become float32 or whole before they move
    *('patch: draws', 'patch: _draw', 'decision: __init__', 'metric: usual_distance'),
    *('baselines: effective_weights', 'baselines: ask'),
}


@pytest.fixture
def apple(monkeypatch):
    "A Mac with PyTorch for its GPU, which is there or not (a function)."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(defaults, 'use_cuda', None)
    monkeypatch.setattr(torch.backends.mps, 'is_built', lambda: True)
    return lambda there: monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: there)


def test_the_gpu_is_chosen_where_it_is_there(apple, monkeypatch):
    apple(True)
    assert compute_device() == MPS
    assert doctor._device() == (True, 'GPU', "Apple's (MPS), computing in float32")
    monkeypatch.setattr(defaults, 'use_cuda', False)
    assert compute_device() == CPU
    monkeypatch.setattr(defaults, 'use_cuda', None)
    apple(False)  # (a virtual Mac)
    assert compute_device() == CPU and doctor._device()[2].startswith('none that PyTorch sees')


def test_it_computes_in_float32(apple, monkeypatch):
    apple(True)
    for amp in (None, True, False):
        assert ExperimentConfig(amp=amp).amp is False
    assert not bf16_pays(MPS)
    for device, on in ((MPS, False), (CPU, True)):
        with autocast(device):
            assert torch.is_autocast_enabled(device.type) == on
    apple(False)
    assert ExperimentConfig(amp=True).amp is True


def test_patches_are_cut_in_the_same_process(dataset, monkeypatch):
    "Macs start processes afresh, which takes longer than what they would save."

    class Seen(Exception):
        pass

    def see(crops, block, classes, parts, bs, loading, more):
        raise Seen(loading['num_workers'])

    monkeypatch.setattr(patch, '_labeled_loaders', see)
    for device, some in ((MPS, False), (CPU, False), (torch.device('cuda'), not starts_afresh())):
        with pytest.raises(Seen) as seen:
            colony_dataloaders(ColonyDataset(dataset), scales=(32,), device=device)
        assert bool(seen.value.args[0]) == some


def test_the_state_of_its_generator_is_kept(apple, monkeypatch):
    kept = []
    monkeypatch.setattr(torch.mps, 'get_rng_state', lambda: torch.arange(3, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, 'set_rng_state', kept.append)
    apple(True)
    state = random_state()
    set_random_state(state)
    assert kept[0].tolist() == [0, 1, 2]
    apple(False)
    set_random_state(state)  # (resumed on another machine)
    del state['mps']
    set_random_state(state)  # (of a run that began earlier)
    assert len(kept) == 1 and random_state()['mps'] == []


def lacks_mps(kernels, name):
    "Has an operation no kernel for Apple's GPUs in PyTorch's own list?"
    f = kernels[name]
    dispatch, delegate = ' '.join(f.get('dispatch') or {}), f.get('structured_delegate')
    if delegate:
        return lacks_mps(kernels, delegate)
    return bool(dispatch) and 'MPS' not in dispatch and 'Composite' not in dispatch


class Watch(TorchDispatchMode):
    "Notes every operation, and where float64 occurs."

    def __init__(self):
        super().__init__()
        self.operations, self.doubles = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.add(str(func._schema).partition('(')[0].removeprefix('aten::'))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if any(t.dtype == torch.float64 for t in tensors):
            own = [f for f in traceback.extract_stack() if 'ipb_nb' in Path(f.filename).parts]
            self.doubles.add(f'{Path(own[-1].filename).stem}: {own[-1].name}')
        return out


@pytest.fixture(scope='module')
def kernels():
    import torchgen

    listed = Path(torchgen.__file__).parent / 'packaged/ATen/native/native_functions.yaml'
    return {f['func'].partition('(')[0]: f for f in yaml.load(listed.read_text(), yaml.CSafeLoader)}


def test_the_list_of_kernels_says_what_is_missing(kernels):
    assert lacks_mps(kernels, 'linalg_eig') and not lacks_mps(kernels, 'convolution_overrideable')
    assert not lacks_mps(kernels, 'add.Tensor') and not lacks_mps(kernels, 'grid_sampler_2d')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['mpl', 'simclr', 'simtriplet', 'clustering_finetuned', 'crest', 'effective_number'])
def test_nothing_reaches_it_that_it_lacks(method, kernels, dataset, tmp_path):
    "No float64 but where tensors stay on the CPU, and no operation without a kernel."
    short = dict(steps=2, epochs=1, pretrain_epochs=1, batch_size=8, finetune=1, ema=0.9, threads=1, pairs=8, mu=1)
    short |= dict(generations=1, scales='32', test_patches=3)
    if not METHODS[method].pretrains:
        short['pretrain_epochs'] = 0
    with Watch() as watch:
        run = train(ExperimentConfig(method=method, amp=False, **short), dataset, tmp_path / 'run')
        student, ds = load_student(run), ColonyDataset(dataset)
        student.classify([ds.colony(i) for i in ds.colonies.index[:4]])
    assert len(watch.operations) > 50
    known = watch.operations & {*kernels}
    assert not {name for name in known if lacks_mps(kernels, name)}
    assert {name.partition('::')[0] for name in watch.operations - known} <= {'profiler', 'torchvision'}
    assert watch.doubles <= ON_CPU
