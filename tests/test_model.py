"Networks that cannot be built are refused before anything is trained; those that can have finite gradients."

import pytest
import torch

from ipb_nb.core import InputError
from ipb_nb.model import autocast, create_model


@pytest.mark.parametrize(
    'kwargs, match',
    [
        (dict(arch='resnet10'), 'arch: found resnet10; expected .* Near that: resnet10t'),
        (dict(arch='vgg'), 'arch: found vgg; .* Near that: vgg19'),
        (dict(scales=(100,)), 'scales: found 100 px; expected a side that hrnet takes. Near that: 96 or 112 or 128 px'),
        (
            dict(arch='vgg19', scales=(16,)),
            'scales: found 16 px; .* vgg19 takes. Near that: 32 or 64 px|Near that: 32 px',
        ),
        (dict(arch='vit_tiny_patch16_224', scales=(8,)), 'scales: found 8 px; .* Near that: 16 or 32 px'),
        (dict(scales=(96, 64, 32)), 'scales: found 3 of them; expected one or two'),
        (dict(scales=(48, 96)), 'scales: .* largest first'),
        (dict(arch='resnet10t', width=0.5), 'width: found 0.5; expected 1 for resnet10t'),
        (dict(width=0), 'width: found 0; expected a number above 0'),
        (dict(width=0.5, pretrained=True), 'pretrained: found width 0.5; expected width 1'),
    ],
)
def test_what_cannot_be_built(kwargs, match):
    with pytest.raises(InputError, match=match):
        create_model(**(dict(arch='hrnet', scales=(64,), n_classes=4) | kwargs))


def _leave_nan_in_freed_memory():
    [torch.full((int(2**k),), float('nan')) for k in torch.arange(4, 20, 0.25) for _ in range(4)]


@pytest.mark.parametrize(
    'arch, side', [('test_resnet', 8), ('test_resnet', 16), ('resnet10t', 16), ('hrnet', 16), ('resnetv2_50', 16)]
)
def test_gradients_in_bfloat16_are_finite(arch, side):
    net = create_model(arch, (side,), 3)
    for _ in range(4):
        _leave_nan_in_freed_memory()
        with autocast('cpu'):
            out = net(torch.randn(16, 1, side, side))
        _leave_nan_in_freed_memory()
        out.float().square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
        net.zero_grad()
