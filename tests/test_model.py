"Networks that cannot be built are refused before anything is trained."

import pytest

from ipb_nb.core import InputError
from ipb_nb.model import create_model


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
