"Scores against scikit-learn on small and degenerate test sets; what cannot be scored; the corrected t-test."

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from ipb_nb.core import InputError
from ipb_nb.metric import corrected_ttest, scores

CLASSES = ['Debris', 'Dense', 'Diff', 'Spread']


def test_degenerate_test_sets():
    "Five hundred small test sets in which classes are absent or never predicted."
    rng = np.random.default_rng(0)
    for _ in range(500):
        k = rng.integers(1, 12)
        a, b = (rng.choice(CLASSES, k, p=rng.dirichlet([0.4] * 4)) for _ in 'ab')
        s = scores(a, b, np.eye(4)[[CLASSES.index(c) for c in b]], CLASSES)
        there = [c for c in CLASSES if c in a]
        p, r, f, _ = precision_recall_fscore_support(a, b, labels=there, zero_division=0)
        for name, v in dict(tpr=r, precision=p, f1=f).items():
            assert np.allclose([s[name][c] for c in there], v)
            assert np.isclose(s[f'macro_{name}'], v.mean())
        assert [s['tpr'][c] for c in CLASSES if c not in a] == [None] * (4 - len(there))


@pytest.mark.parametrize(
    'actual, predicted, probs, match',
    [
        (['Dense'], ['Dens'], [[0, 1, 0, 0]], 'predicted: found class Dens; expected one of Debris, Dense'),
        (['Dens'], ['Dense'], [[0, 1, 0, 0]], 'actual: found class Dens; expected one of Debris, Dense'),
        (['Dense'], ['Dense'], [[0, 1]], r'probs: found shape \(1, 2\) for 1 actual'),
        ([], [], np.zeros((0, 4)), 'actual: found no test colonies'),
    ],
)
def test_what_cannot_be_scored(actual, predicted, probs, match):
    with pytest.raises(InputError, match=match):
        scores(actual, predicted, probs, CLASSES)


def test_the_effect_has_an_interval_on_both_sides():
    rng = np.random.default_rng(0)
    for d in (rng.normal(0.3, 1, k) for k in (3, 5, 10)):
        a, b = corrected_ttest(d, 0.1), corrected_ttest(-d, 0.1)
        assert np.allclose([a['d_low'], a['d_high']], [-b['d_high'], -b['d_low']])
        assert not (np.isnan(a['d_low']) or np.isnan(a['d_high']))
