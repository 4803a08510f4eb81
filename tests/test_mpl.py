"Meta pseudo labels and pseudo balancing against independent oracles: double precision, smooth networks, no dropout."

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.training import GradientClip
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from scipy.stats import chisquare
from torch import nn

from ipb_nb.balance import PseudoBalance, pseudo_labels
from ipb_nb.baselines import FixMatch
from ipb_nb.core import InputError, counter_rng, stable_hash
from ipb_nb.method import MaskedCrossEntropy, paper_sgd
from ipb_nb.mixup import Mixup
from ipb_nb.mpl import (
    FEEDBACK,
    MeanTeacher,
    MetaPseudoLabels,
    PseudoLabels,
    exact_feedback,
    feedback_loss,
    taylor_feedback,
)
from ipb_nb.patch import uniforms
from ipb_nb.toy import Points

B, D, K, N = 8, 5, 3, 48


def views(x, keys, kind):
    "Shifted by an amount that follows from the key; the same in double precision everywhere."
    return x + dict(plain=0.0, weak=0.1, strong=0.5)[kind] * torch.sin(
        keys[:, None].double() % 97 + torch.arange(x.shape[1])
    )


def network(seed, norm=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(D, 12), *([nn.BatchNorm1d(12)] if norm else []), nn.Tanh(), nn.Linear(12, K)
    ).double()


def loaders(seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(N, D, generator=g).double(), torch.randint(K, (N,), generator=g)
    u = torch.randn(3 * B, D, generator=g).double()
    u[: 2 * B] *= 4  # (of these the teachers are sure, of the rest not)
    u[2 * B :] *= 1e-3
    return Points([(p,) for p in u], bs=B, shuffle=True, num_workers=0, drop_last=True), Points(
        [*zip(x, y)], bs=B, shuffle=True, num_workers=0, drop_last=True
    )


class InOrder(Points):
    def get_idxs(self):
        return list(range(self.n))


class Shares(Callback):
    "In the place of `PseudoBalance`, by logits."

    name = 'pseudo_balance'

    def __init__(self, log_shares):
        self.log_shares = torch.tensor(log_shares).double()


def learner(feedback, student, teacher, threshold, frozen=False, student_clip=0, log_shares=(), mixup=0, **kwargs):
    u, labeled = loaders()
    u = InOrder(u.dataset, bs=B, shuffle=True, num_workers=0, drop_last=True)
    cb = (
        PseudoLabels(teacher, views, threshold=threshold, **kwargs)
        if frozen
        else MetaPseudoLabels(
            teacher, labeled, views, feedback, threshold=threshold, lr=0.05, wd=1e-2, momentum=0.9, **kwargs
        )
    )
    learn = Learner(
        DataLoaders(u, labeled.new(shuffle=False)),
        student,
        loss_func=MaskedCrossEntropy(),
        opt_func=paper_sgd(),
        wd=1e-2,
        wd_bn_bias=False,
        cbs=[
            cb,
            *([GradientClip(student_clip)] if student_clip else []),
            *([Shares(log_shares)] if log_shares else []),
            *([Mixup(mixup, K)] if mixup else []),
        ],
    )
    learn.remove_cb(learn.recorder)  # (its running loss is single precision)
    return learn, u, labeled


def torch_sgd(net, lr):
    decayed = [m.weight for m in net if isinstance(m, nn.Linear)]
    rest = [p for p in net.parameters() if not any(p is d for d in decayed)]
    return torch.optim.SGD([dict(params=decayed, weight_decay=1e-2), dict(params=rest)], lr=lr, momentum=0.9)


def labelled_loss(net, x, y):
    "With the batch's statistics, on a copy: the running ones stay."
    return F.cross_entropy(copy.deepcopy(net)(x), y)


def mixed(x, y, alpha, i):
    "Patch by patch, with the draws of the first epoch's step `i`."
    rng = counter_rng(stable_hash('mixup', 0, 0, i, 0))
    share, other = rng.beta(alpha, alpha, len(x)), rng.permutation(len(x))
    share = [max(float(v), 1 - float(v)) for v in share]
    return tuple(torch.stack([v * o[k] + (1 - v) * o[j] for k, (v, j) in enumerate(zip(share, other))]) for o in (x, y))


def longhand(
    feedback,
    s,
    t,
    threshold,
    u,
    labeled,
    lr=0.1,
    temperature=1.0,
    label='argmax',
    label_smoothing=0.0,
    clip=0.0,
    student_clip=0.0,
    h_baseline=0.0,
    warmup=0.0,
    lambda_u=2.0,
    ramp=0.5,
    save_memory=False,
    student_labeled=False,
    log_shares=(0.0,) * K,
    mixup=0.0,
):
    "The same steps in plain torch."
    opt_s, opt_t, n, o = torch_sgd(s, lr), torch_sgd(t, 0.05), len(u), torch.tensor(log_shares).double()
    seen, baseline = [], None
    if feedback == 'cosine':
        h_baseline = h_baseline or 0.99
    for i, ((x, keys), (x_l, y_l)) in enumerate(zip(u, labeled.new(n_draws=n * B, epoch=0))):
        weak, strong = views(x, keys, 'weak'), views(x, keys, 'strong')
        out = t(torch.cat([x_l, weak, strong]))
        p = ((out[B : 2 * B].detach() + o) / temperature).softmax(1)
        y, sure = p.argmax(1), p.max(1).values >= threshold
        if label == 'sample':  # by the inverse of the distribution function
            chances = np.cumsum((out[B : 2 * B].detach() + o).softmax(1).numpy(), 1)
            y = torch.tensor(
                [
                    min(int(np.searchsorted(c, v, side='right')), K - 1)
                    for c, v in zip(chances, uniforms(keys, 'label', 1)[:, 0].double().numpy())
                ]
            )
            sure = torch.tensor([float(row[k]) for row, k in zip(p, y)]) >= threshold  # (of the label drawn)
        soft = p if label == 'soft' else F.one_hot(y, K).double()
        shown, said, x_seen, y_seen = strong, soft * sure[:, None], x_l, F.one_hot(y_l, K).double()
        if mixup and student_labeled:
            x_mixed, y_mixed = mixed(torch.cat([x_l, strong]), torch.cat([y_seen, said]), mixup, i)
            (x_seen, shown), (y_seen, said) = x_mixed.split(B), y_mixed.split(B)
        elif mixup:
            shown, said = mixed(strong, said, mixup, i)
        seen.append(int(sure.sum()))
        opt_s.zero_grad()
        if feedback == 'reference':
            joint = s(torch.cat([x_l, strong]))
            old, taught = F.cross_entropy(joint[:B].detach(), y_l), F.cross_entropy(joint[B:] + o, soft)
        else:
            taught = -(said * (s(shown) + o).log_softmax(1)).sum() / B
        h = torch.zeros((), dtype=torch.double)
        if sure.any() or student_labeled or feedback == 'reference':
            taught.backward()
            g = [q.grad.clone() for q in s.parameters()]
            if student_labeled:
                (-(y_seen * s(x_seen).log_softmax(1)).sum() / B).backward()
            if student_clip:
                nn.utils.clip_grad_norm_(s.parameters(), student_clip)
            if not student_labeled:  # (with L in the step, the part of the pseudo-labels alone)
                g = [q.grad.clone() for q in s.parameters()]
            if feedback == 'taylor':  # the optimiser's step with g = 0, by the optimiser
                untaught = copy.deepcopy(s)
                twin = torch_sgd(untaught, lr)
                twin.load_state_dict(copy.deepcopy(opt_s.state_dict()))
                for q, q_s, q_g in zip(untaught.parameters(), s.parameters(), g):
                    q.grad = q_s.grad - q_g  # (what L taught stays)
                twin.step()
            opt_s.step()
            if feedback in ('exact', 'cosine'):
                there = copy.deepcopy(s)
                grads = torch.autograd.grad(F.cross_entropy(there(x_l), y_l), list(there.parameters()))
                dot, *squares = (sum((a * b).sum() for a, b in zip(*o)) for o in ((grads, g), (grads, grads), (g, g)))
                h = lr * dot if feedback == 'exact' else dot / max(math.sqrt(math.prod(squares)), 1e-16)  # (or 0)
            elif feedback == 'taylor':
                h = (labelled_loss(untaught, x_l, y_l) - labelled_loss(s, x_l, y_l)).detach()
            elif feedback == 'reference':
                h = labelled_loss(s, x_l, y_l).detach() - old  # after less before, as published
            if h_baseline:
                baseline = h if baseline is None else baseline
                h, baseline = h - baseline, h_baseline * baseline + (1 - h_baseline) * h
        uda = (-(p * (out[2 * B :] + o).log_softmax(1)).sum(1) * sure).mean()
        mpl = (
            h * F.cross_entropy(out[2 * B :] + o, out[2 * B :].detach().argmax(1))
            if feedback == 'reference'
            else h * (-(soft * (out[B : 2 * B] + o).log_softmax(1)).sum(1) * sure).mean()
        )
        target = F.one_hot(y_l, K).double() * (1 - label_smoothing) + label_smoothing / K
        loss = -(target * out[:B].log_softmax(1)).sum(1).mean() + lambda_u * min(i / n / ramp, 1) * uda + mpl
        opt_t.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(t.parameters(), clip)
        done = i / n
        for group in opt_t.param_groups:
            group['lr'] = (
                0.05 * done / warmup
                if done < warmup
                else 0.05 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
            )
        opt_t.step()
    return opt_s, opt_t, seen


ALL_ON = dict(
    temperature=0.7,
    label='sample',
    label_smoothing=0.2,
    clip=0.05,
    student_clip=0.1,
    h_baseline=0.9,
    warmup=0.4,
    save_memory=True,
)


LABELED = dict(student_labeled=True)
BY_LOGITS = dict(log_shares=tuple(np.log([0.38, 0.34, 0.28]).tolist()))
OPTIONS = [
    {},
    ALL_ON,
    *({k: v} for k, v in ALL_ON.items()),
    dict(label='soft'),
    LABELED,
    ALL_ON | LABELED | dict(student_clip=0),
    BY_LOGITS,
    ALL_ON | BY_LOGITS,
    LABELED | BY_LOGITS | dict(label='soft'),
    dict(mixup=0.75),
    LABELED | BY_LOGITS | dict(label='soft', mixup=0.75),
]


@pytest.mark.parametrize('options', OPTIONS, ids=lambda o: '+'.join(o) if len(o) < 3 else f'{len(o)} of them')
@pytest.mark.parametrize('feedback', [f for f in FEEDBACK if f != 'ema'])
def test_three_steps_equal_longhand(feedback, options):
    """The third batch has no confident patch.

    Weights, buffers and momenta of both networks, to 1e-10; gradients that were there before do not count."""
    if feedback == 'reference':
        options = {k: v for k, v in options.items() if k not in ('student_labeled', 'mixup')}  # (refused, see below)
    student, teacher, threshold = network(1), network(2), 0.62 if 'temperature' in options else 0.53
    s, t = copy.deepcopy((student, teacher))
    teacher(torch.randn(4, D).double()).sum().backward()
    teacher.load_state_dict(t.state_dict())
    learn, u, labeled = learner(feedback, student, teacher, threshold, lambda_u=2.0, ramp=0.5, **options)
    with learn.no_bar():
        learn.fit(1, 0.1)
    opt_s, opt_t, seen = longhand(
        feedback,
        s,
        t,
        threshold,
        InOrder(u.dataset, bs=B, shuffle=True, num_workers=0, drop_last=True),
        labeled,
        **options,
    )
    assert seen[0] > 0 and seen[1] > 0 and seen[2] == 0
    for ours, theirs, opt, twin in (
        (student, s, learn.opt, opt_s),
        (teacher, t, learn.meta_pseudo_labels.opt_t, opt_t),
    ):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10), name
        for a, b in zip(ours.parameters(), theirs.parameters()):
            assert torch.allclose(opt.state[a]['grad_avg'], twin.state[b]['momentum_buffer'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('decay', [0.9, 0.22])  # (the warm-up is above the second one from the second step on)
@pytest.mark.parametrize('options', [{}, LABELED, BY_LOGITS | LABELED | dict(label='soft'), LABELED | dict(mixup=0.75)])
def test_a_teacher_that_follows_equals_longhand(options, decay):
    """The teacher labels in evaluation mode, takes no step, and is the student's mean: weights and batch statistics.

    The third batch has no confident patch."""
    teacher, threshold, lr, n = network(2), 0.53, 0.1, 3
    student = copy.deepcopy(teacher)
    s, t = copy.deepcopy((student, teacher))
    u, labeled = loaders()
    u = InOrder(u.dataset, bs=B, shuffle=True, num_workers=0, drop_last=True)
    own = {k: v for k, v in options.items() if k == 'label'}
    of_l = labeled if 'student_labeled' in options else None
    cbs = [MeanTeacher(teacher, views, decay, threshold=threshold, labeled_dl=of_l, **own)]
    o = torch.zeros(K).double()
    if 'log_shares' in options:
        cbs.append(Shares(options['log_shares']))
        o = torch.tensor(options['log_shares']).double()
    if mixup := options.get('mixup'):
        cbs.append(Mixup(mixup, K))
    learn = Learner(
        DataLoaders(u, labeled.new(shuffle=False)),
        student,
        MaskedCrossEntropy(),
        opt_func=paper_sgd(),
        wd=1e-2,
        wd_bn_bias=False,
        cbs=cbs,
    )
    learn.remove_cb(learn.recorder)
    with learn.no_bar():
        learn.fit(1, lr)
    opt, seen = torch_sgd(s, lr), []
    for i, ((x, keys), (x_l, y_l)) in enumerate(zip(u, labeled.new(n_draws=n * B, epoch=0))):
        with torch.no_grad():
            p = (t.eval()(views(x, keys, 'weak')) + o).softmax(1)
        sure = p.max(1).values >= threshold
        seen.append(int(sure.sum()))
        said = (p if own else F.one_hot(p.argmax(1), K).double()) * sure[:, None]
        shown, of_l = views(x, keys, 'strong'), F.one_hot(y_l, K).double()
        if mixup:
            (x_l, shown), (of_l, said) = (
                m.split(B) for m in mixed(torch.cat([x_l, shown]), torch.cat([of_l, said]), mixup, i)
            )
        opt.zero_grad()
        (-(said * (s(shown) + o).log_softmax(1)).sum() / B).backward()
        if 'student_labeled' in options:
            (-(of_l * s(x_l).log_softmax(1)).sum() / B).backward()
        if sure.any() or 'student_labeled' in options:
            opt.step()
        d = min(decay, (1 + i + 1) / (10 + i + 1))
        for mean, now in zip(t.state_dict().values(), s.state_dict().values()):
            if mean.is_floating_point():
                mean.copy_(d * mean + (1 - d) * now)
    assert len(seen) == n and max(seen) > 0
    for ours, theirs in ((student, s), (teacher, t)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()):
            if a.is_floating_point():
                assert torch.allclose(a, b, rtol=0, atol=1e-10), name
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters()))
    assert all(q.grad is None for q in teacher.parameters())


@pytest.mark.parametrize('method', ['supervised', 'fixmatch'])
@pytest.mark.parametrize('alpha', [0.0, 0.75])
def test_blends_of_one_network_equal_longhand(method, alpha):
    "L with L, or L with U, whose unsure labels do not count; of U there are as many patches as of L here."
    u, labeled = loaders()
    u, net = InOrder(u.dataset, bs=B, shuffle=True, num_workers=0, drop_last=True), network(1)
    labeled.vocab, twin, threshold, lr = list(range(K)), copy.deepcopy(net), 0.42, 0.1
    cbs = [Mixup(alpha, K)] if alpha else []
    if method == 'fixmatch':
        cbs.append(FixMatch(labeled, views, threshold=threshold, lambda_u=0.7))
    dls = DataLoaders(u if method == 'fixmatch' else labeled, labeled.new(shuffle=False))
    learn = Learner(dls, net, MaskedCrossEntropy(), opt_func=paper_sgd(), wd=1e-2, wd_bn_bias=False, cbs=cbs)
    learn.remove_cb(learn.recorder)
    with learn.no_bar():
        learn.fit(1, lr)
    opt, batches = torch_sgd(twin, lr), labeled.new(epoch=0)
    if method == 'fixmatch':
        batches = labeled.new(weights=labeled.weights, n_draws=len(u) * B, epoch=0)
    counted = 0
    for i, (x, y) in enumerate(batches):
        y, n = F.one_hot(y, K).double(), len(x)
        if method == 'fixmatch':
            patches, keys = list(u)[i]
            p = copy.deepcopy(twin)(views(patches, keys, 'weak')).softmax(1).detach()
            sure = p.max(1).values >= threshold
            counted += int(sure.sum())
            x = torch.cat([x, views(patches, keys, 'strong')])
            y = torch.cat([y, F.one_hot(p.argmax(1), K) * sure[:, None]])
        if alpha:
            x, y = mixed(x, y, alpha, i)
        each = -(y * twin(x).log_softmax(1)).sum(1)
        opt.zero_grad()
        (each[:n].mean() + 0.7 * each[n:].sum() / n).backward()
        opt.step()
    assert i == (2 if method == 'fixmatch' else 5)
    assert method == 'supervised' or 0 < counted < 3 * B  # (some are sure)
    for (name, a), b in zip(net.state_dict().items(), twin.state_dict().values()):
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10), name


def trained(steps, lr):
    """A student after some steps with momentum and weight decay, the gradient of its last, and where that step led
    with g = 0."""
    net = network(3)
    opt = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=1e-2)
    g = torch.Generator().manual_seed(5)
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(net(torch.randn(16, D, generator=g).double()), torch.randint(K, (16,), generator=g)).backward()
        grad = [p.grad.clone() for p in net.parameters()]
        untaught = copy.deepcopy(net)
        twin = torch.optim.SGD(untaught.parameters(), lr, momentum=0.9, weight_decay=1e-2)
        twin.load_state_dict(copy.deepcopy(opt.state_dict()))
        for p in untaught.parameters():
            p.grad = torch.zeros_like(p)
        twin.step()
        opt.step()
    x, y = torch.randn(20, D, generator=g).double(), torch.randint(K, (20,), generator=g)
    return net, grad, untaught, x, y


@pytest.mark.parametrize('steps', [1, 6])
def test_exact_equals_the_central_difference(steps):
    checked = 0
    for lr in (0.3, 0.1, 0.01):
        net, g, _, x, y = trained(steps, lr)
        at = copy.deepcopy(net)
        grads = torch.autograd.grad(F.cross_entropy(at(x), y), list(at.parameters()))
        flat = lambda v: torch.cat([o.flatten() for o in v])
        cos = F.cosine_similarity(flat(grads), flat(g), 0).abs()

        def loss(eps):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                for p, d in zip(moved.parameters(), g):
                    p += eps * d
            return F.cross_entropy(moved(x), y).item()

        eps = 1e-4
        central = lr * (8 * (loss(eps) - loss(-eps)) - (loss(2 * eps) - loss(-2 * eps))) / (12 * eps)  # fourth order
        if cos > 0.1:
            assert abs(exact_feedback(net, x, y, g, lr).item() / central - 1) < 1e-6
            checked += 1
    assert checked


@pytest.mark.parametrize('steps', [1, 6])
def test_taylor_approaches_exact_as_the_square_of_the_rate(steps):
    etas = np.logspace(-2, -4, 9)
    errors = []
    for lr in etas:
        net, g, untaught, x, y = trained(steps, lr)
        taylor = taylor_feedback(net, x, y, g, lr).item()
        assert (
            abs(taylor - (labelled_loss(untaught, x, y) - labelled_loss(net, x, y)).item()) < 1e-12
        )  # θ̄ is the optimiser's own step with g = 0
        errors.append(abs(taylor - exact_feedback(net, x, y, g, lr).item()))
    assert abs(np.polyfit(np.log(etas), np.log(errors), 1)[0] - 2) < 0.1


@pytest.mark.parametrize('b', [1, 2])
def test_the_expected_feedback_gradient_is_the_true_one(b):
    "All label vectors enumerated: Σ P·h·∇ΣCE equals the gradient of Σ P·L(θ'(ŷ))."
    torch.manual_seed(7)
    student, teacher, lr = network(4, norm=False), network(5, norm=False), 0.5
    x, strong = torch.randn(b, D).double(), torch.randn(b, D).double()
    x_l, y_l = torch.randn(10, D).double(), torch.randint(K, (10,))
    old = F.cross_entropy(student(x_l), y_l).detach()
    logits = teacher(x)
    true, ours = 0, 0
    for y in map(torch.tensor, itertools.product(range(K), repeat=b)):
        taught = copy.deepcopy(student)
        grads = torch.autograd.grad(F.cross_entropy(taught(strong), y), list(taught.parameters()))
        with torch.no_grad():
            for p, d in zip(taught.parameters(), grads):
                p -= lr * d
        new = F.cross_entropy(taught(x_l), y_l).detach()
        chance = logits.softmax(1)[range(b), y].prod()
        true = true + chance * new
        ours = ours + chance.detach() * feedback_loss(old - new, logits, y, torch.ones(b, dtype=torch.bool)) * b
    params = list(teacher.parameters())
    for a, c in zip(torch.autograd.grad(true, params, retain_graph=True), torch.autograd.grad(ours, params)):
        assert torch.allclose(a, c, rtol=1e-9, atol=1e-12)


def test_a_label_that_helped_becomes_likelier():
    "One patch, the feedback term alone: over many patches the likelihood goes where the labelled loss went."
    helped = hurt = 0
    for seed in range(30):
        torch.manual_seed(seed)
        student, teacher = network(seed, norm=False), network(seed + 100, norm=False)
        x, x_l = torch.randn(1, D).double(), torch.randn(6, D).double()
        y_l = torch.randint(K, (6,))
        logits = teacher(x)
        y = logits.argmax(1)
        g = torch.autograd.grad(F.cross_entropy(student(x), y), list(student.parameters()))
        before = F.cross_entropy(student(x_l), y_l)
        with torch.no_grad():
            for p, d in zip(student.parameters(), g):
                p -= 0.01 * d
        fell = (before - F.cross_entropy(student(x_l), y_l)).item()
        h = exact_feedback(student, x_l, y_l, g, 0.01)
        if abs(fell) < 1e-5:
            continue  # (too close to nothing for first order to have a sign)
        assert h.sign().item() == np.sign(fell)
        grads = torch.autograd.grad(feedback_loss(h, logits, y, torch.tensor([True])), list(teacher.parameters()))
        with torch.no_grad():
            was = logits.softmax(1)[0, y]
            for p, d in zip(teacher.parameters(), grads):
                p -= 0.1 * d
            now = teacher(x).softmax(1)[0, y]
        assert (now > was) == (fell > 0)
        helped, hurt = helped + (fell > 0), hurt + (fell < 0)
    assert helped > 3 and hurt > 3


@pytest.mark.parametrize(
    'feedback, student_passes, teacher_passes',
    [('exact', 2, 1), ('taylor', 3, 1), ('reference', 2, 1), ('none', 1, 1), (None, 1, 1)],
)
def test_passes_are_as_stated(feedback, student_passes, teacher_passes):
    student, teacher = network(1), network(2)
    learn, u, _ = learner(feedback, student, teacher, 0.0, frozen=feedback is None)
    n = dict(s=0, t=0)
    for k, net in (('s', student), ('t', teacher)):
        net.register_forward_hook(lambda *_, k=k: n.update({k: n[k] + 1}))
    before = copy.deepcopy(teacher.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
    assert n['t'] == 3 * teacher_passes and n['s'] == 3 * student_passes + len(learn.dls.valid)
    if feedback is None:
        assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_what_is_logged():
    student, teacher = network(1), network(2)
    learn, *_ = learner('exact', student, teacher, 0.0, log_agreement=True)
    with learn.no_bar():
        learn.fit(1, 0.1)
    log = learn.meta_pseudo_labels.epoch_log
    assert (
        {'h', 'agreement', 'teacher_loss', 'labeled_loss', 'consistency_loss', 'confident_share', 'mpl_to_uda'}
        == set(log)
        and log['confident_share'] == 1
        and 0 <= log['agreement'] <= 1
    )
    plain, other = network(1), network(2)
    learn, *_ = learner('exact', plain, other, 0.0)
    with learn.no_bar():
        learn.fit(1, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), teacher.parameters()))  # looking changes nothing


def test_dropout_is_off_and_running_statistics_stay_while_h_is_measured():
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Linear(D, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Tanh(), nn.Linear(12, K))
        .double()
        .train()
    )
    x, y, g = torch.randn(10, D).double(), torch.randint(K, (10,)), [torch.randn_like(p) for p in net.parameters()]
    before = copy.deepcopy(net.state_dict())
    for f in (exact_feedback, taylor_feedback):
        assert f(net, x, y, g, 0.1) == f(net, x, y, g, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    assert not torch.equal(net(x), net(x))  # (it is on again)


def test_a_cancelled_step_gives_no_feedback():
    from fastai.callback.core import Callback, CancelStepException

    class Cancels(Callback):
        order = 11

        def before_step(self):
            if self.iter == 1:
                raise CancelStepException

    student, teacher, h = network(1), network(2), []
    learn, *_ = learner('exact', student, teacher, 0.0)
    learn.add_cb(Cancels())
    with learn.no_bar():
        learn.fit(1, 0.1)
    h = [o['h'].item() for o in learn.meta_pseudo_labels.log]
    assert h[0] != 0 and h[1] == 0 and h[2] != 0


def test_training_can_begin_at_a_later_epoch():
    student, teacher = network(1), network(2)
    learn, *_ = learner('exact', student, teacher, 0.0)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, 0.1, start_epoch=2)
    assert len(learn.meta_pseudo_labels.log) == 3


def test_what_cannot_be_is_refused():
    from fastai.optimizer import Adam

    with pytest.raises(InputError, match='feedback: found approx; expected exact or taylor or cosine or reference'):
        learner('approx', network(1), network(2), 0.5)
    with pytest.raises(InputError, match='label: found both; expected argmax or sample'):
        PseudoLabels(network(1), views, label='both')
    learn, *_ = learner('exact', network(1), network(2), 0.5)
    learn.opt_func = Adam
    with pytest.raises(InputError, match='opt_func: found an optimiser with .*; expected SGD'), learn.no_bar():
        learn.fit(1, 0.1)


class Sorts(nn.Module):
    "A teacher that goes by the first number."

    def __init__(self, *borders):
        super().__init__()
        self.borders = torch.tensor(borders)

    def forward(self, x):
        return F.one_hot(torch.bucketize(x[:, 0].float(), self.borders), K) * 8.0 + x[:, 1:2].float() * 0


def balanced(teacher, **kwargs):
    g = torch.Generator().manual_seed(3)
    u = Points(
        [(p,) for p in torch.randn(200, D, generator=g).double()],
        bs=B,
        shuffle=True,
        num_workers=0,
        n_draws=1000,
        drop_last=True,
    )
    learn = Learner(
        DataLoaders(u, u),
        network(1),
        loss_func=MaskedCrossEntropy(),
        cbs=[PseudoBalance(teacher, ['a', 'b', 'c'], views, **kwargs)],
    )
    learn.create_opt()
    learn.epoch, learn.dl = 0, u
    learn('before_train')
    return learn.pseudo_balance, u


def test_draws_follow_the_stated_weights():
    pb, u = balanced(Sorts(0.5, 1.2))
    label = np.digitize([p[0].item() for (p,) in u.dataset], [0.5, 1.2])  # longhand
    weights = 1 / np.bincount(label)[label]
    counts = np.zeros(200)
    for u.epoch in range(40):
        counts += np.bincount(np.array(u.get_idxs()) % 200, minlength=200)
    assert chisquare(counts, weights / weights.sum() * counts.sum()).pvalue > 0.001
    assert chisquare([r['draws'] for r in pb.table]).pvalue > 0.001
    stated = np.array([r['weight'] for r in pb.table])
    assert np.allclose(stated / stated.sum(), (1 / np.bincount(label)) / (1 / np.bincount(label)).sum())


class Gradual(nn.Module):
    "The first class lies on the left, the second on the right, the rare third above; nothing is certain."

    def forward(self, x):
        return torch.stack([-2 * x[:, 0], 2 * x[:, 0] - 1, 3 * x[:, 1] - 3], 1).float()


def test_soft_draws_follow_the_stated_weights():
    pb, u = balanced(Gradual(), soft=True)
    p = Gradual()(torch.stack([p for (p,) in u.dataset])).softmax(1).double().numpy()
    share = np.full(K, 1 / K)  # longhand: the shares that agree with their own result
    for _ in range(500):
        q = p * share / (p * share).sum(1, keepdims=True)
        share = q.mean(0)
    r = q / q.sum(0)
    weights = r.sum(1) / r.sum()
    assert np.allclose(u.weights / u.weights.sum(), weights, rtol=1e-3)
    assert np.allclose([row['share'] for row in pb.table], share, atol=1e-4)
    counts = np.zeros(200)
    for u.epoch in range(40):
        counts += np.bincount(np.array(u.get_idxs()) % 200, minlength=200)
    assert chisquare(counts, weights * counts.sum()).pvalue > 0.001
    drawn = np.repeat(np.arange(200), counts.astype(int))
    assert np.allclose(p[drawn].mean(0), 1 / K, atol=0.02)  # the labels that are taught, r normalised, are balanced


def test_a_student_with_labels_steps_at_every_batch_and_a_frozen_teacher_stays():
    student, teacher = network(1), network(2)
    before = copy.deepcopy(teacher.state_dict())
    learn, u, labeled = learner('none', student, teacher, 0.53, frozen=True, labeled_dl=loaders()[1])
    s, opt = copy.deepcopy(student), None
    with learn.no_bar():
        learn.fit(1, 0.1)
    opt = torch_sgd(s, 0.1)
    for (x, keys), (x_l, y_l) in zip(u, labeled.new(n_draws=len(u) * B, epoch=0)):
        with torch.no_grad():
            p = teacher(views(x, keys, 'weak')).softmax(1)
        sure = p.max(1).values >= 0.53
        taught = F.cross_entropy(s(views(x, keys, 'strong')), p.argmax(1), reduction='none') * sure
        opt.zero_grad()
        (taught.sum() / B + F.cross_entropy(s(x_l), y_l)).backward()
        opt.step()
    for (name, a), b in zip(student.state_dict().items(), s.state_dict().values()):
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10), name
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    refused, *_ = learner('reference', student, teacher, 0.5, student_labeled=True)
    with refused.no_bar(), pytest.raises(InputError, match='student_labeled: found yes, with feedback reference'):
        refused.fit(1, 0.1)


@pytest.mark.parametrize('more', [[], [Mixup(0.75, 3)]])
def test_a_loader_is_left_as_it_was(more):
    "A fit without balancing on the same loader is not balanced; the mask's count is what was taught."
    u, labeled = loaders()
    student, teacher = network(1), network(2)
    pb = PseudoBalance(teacher, ['a', 'b', 'c'], views, temperature=2.0, threshold=0.4)
    learn = Learner(
        DataLoaders(u, labeled.new(shuffle=False)),
        student,
        loss_func=MaskedCrossEntropy(),
        opt_func=paper_sgd(),
        cbs=[PseudoLabels(teacher, views, threshold=0.4, temperature=2.0), pb, *more],
    )
    learn.remove_cb(learn.recorder)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
    assert u.weights is None and u.max_repeat == 0
    taught = sum(r['taught'] for r in pb.table)
    assert taught == round(learn.pseudo_labels.epoch_log['confident_share'] * 3 * B) and 0 < taught < 3 * B
    label, confidence = pseudo_labels(teacher, u, views, temperature=2.0)
    p = (teacher(torch.stack([p for (p,) in u.dataset])) / 2).softmax(1).max(1).values
    assert np.allclose(confidence, p.detach().numpy(), atol=1e-6)


def test_absent_classes_and_all_in_one_are_reported():
    pb, u = balanced(Sorts(-9.0, 1.2))
    assert [r['draws'] > 0 for r in pb.table] == [False, True, True] and pb.notes == [
        (0, 'does not see a, so none is drawn')
    ]
    pb, u = balanced(Sorts(-9.0, 9.0))
    assert pb.notes == [(0, 'sees only b: nothing to balance')] and len(set(u.weights)) == 1
    pb, u = balanced(Sorts(0.5, 1.2), max_repeat=9)
    assert max(r['largest_repeat'] for r in pb.table) == 9
    with pytest.raises(InputError, match='balance_on: found most; expected all or confident'):
        PseudoBalance(None, 'ab', views, balance_on='most')


def test_balancing_on_the_confident_draws_them_alone():
    class Unsure(Sorts):
        def forward(self, x):
            return super().forward(x) * (x[:, 1:2] > 0)  # sure of every other point

    pb, u = balanced(Unsure(0.5, 1.2), balance_on='confident')
    label, confidence = pseudo_labels(pb.teacher, u, views)
    drawn = np.array(u.get_idxs()) % 200
    assert (confidence[drawn] >= 0.65).all() and chisquare(np.bincount(label[drawn], minlength=K)).pvalue > 0.001
