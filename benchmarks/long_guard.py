"""Does cross-validation within L foresee whether U helps? On features of a network that knows photographs, computed
once: what learning from U adds to the macro recall on T, and what it adds to that on parts of L held out.

`python benchmarks/long_guard.py FOLDER`, of the datasets and with the test sets of long_pretraining.py; some five
minutes of one core. Ten draws of 5 and of 20 labels a class; U is all that is not in T."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from figures import show
from long_evidence import DATASETS
from long_pretraining import drawn, features, prepared
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.preprocessing import StandardScaler

from ipb_nb.balance import class_weights
from ipb_nb.metric import class_shares

DRAWS, COMPONENTS, DECAY = 10, 64, 0.01


def fit(x, y, n, u=None, target=None, offset=0.0):
    "A logistic regression on L and, by soft targets, on U: function features → logits."
    layer = torch.nn.Linear(x.shape[1], n)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    opt = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn='strong_wolfe')

    def loss():
        opt.zero_grad()
        value = F.cross_entropy(layer(x), y) + DECAY * layer.weight.square().sum()
        if u is not None:
            value = value + F.cross_entropy(layer(u) + offset, target)
        value.backward()
        return value

    opt.step(loss)
    return layer.requires_grad_(False)


def sharp(p):
    "Squared probabilities for U's own shares, and the shares' logarithms."
    share = torch.tensor(class_shares(p.double().numpy()).clip(1e-3)).float()
    q = (p * share).square()
    return q / q.sum(1, keepdim=True), share.log()


def hard(p):
    "The likeliest classes, each as heavy as the others."
    weight = torch.tensor(class_weights(p.argmax(1).numpy(), p.shape[1])[1]).float()[p.argmax(1)]
    return F.one_hot(p.argmax(1), p.shape[1]) * (weight / weight.mean())[:, None], 0.0


def recalls(x, y, n, u, labels, at, of):
    "Macro recall at (`at`, `of`), learnt from L alone and with U."
    alone = fit(x, y, n)
    models = alone, fit(x, y, n, u, *labels(alone(u).softmax(1)))
    return np.array([balanced_accuracy_score(of, m(at).argmax(1)) for m in models])


def measure(name, x, y, in_t):
    x = PCA(COMPONENTS, random_state=0).fit(x[~in_t]).transform(x)
    x, y, n = torch.tensor(x / x[~in_t].std()).float(), torch.tensor(y), y.max() + 1
    u, t = x[~in_t], (x[in_t], y[in_t])
    for number in (5, 20):
        for labels in (sharp, hard):
            rows = []
            for draw in range(DRAWS):
                chosen = drawn(y.numpy(), in_t, number, draw)
                x_l, y_l = x[chosen], y[chosen]
                folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=3, random_state=draw).split(x_l, y_l)
                seen = [recalls(x_l[a], y_l[a], n, u, labels, x_l[b], y_l[b]) for a, b in folds]
                rows.append([np.diff(recalls(x_l, y_l, n, u, labels, *t))[0], np.diff(seen).mean()])
            gain, foreseen = np.array(rows).T
            about = f'{number} labels a class, {labels.__name__} labels of U, {DRAWS} draws'
            row = f'guard.{name}.per{number}.{labels.__name__}'
            show(f'{row}.gain', gain.mean(), 'recall', f'L alone; {about}')
            guarded = np.where(foreseen > 0, gain, 0).mean()
            show(f'{row}.guarded', guarded, 'recall', f'U used only where cross-validation sees a gain; {about}')
            show(f'{row}.correlation', np.corrcoef(gain, foreseen)[0, 1], 'r', f'the gain on T and that in L; {about}')


if __name__ == '__main__':
    for name, (_, variable) in DATASETS.items():
        if variable and not os.environ.get(variable):
            continue
        _, net, dl, _, y, in_t = prepared(Path(sys.argv[1]), name)
        x = features(net, dl)
        measure(name, StandardScaler().fit(x[~in_t]).transform(x), y, in_t)
