"The report over 1,000 runs: seconds, and the size of its page."

import contextlib
import io
import tempfile
import time
from pathlib import Path

from figures import show

from ipb_nb.report import ipb_report
from ipb_nb.run import find_runs, oracle_run
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

CONFIG = dict(
    preset='paper',
    arch='hrnet',
    width=1.0,
    scales='128',
    method='mpl',
    feedback='exact',
    teacher_frozen=False,
    balance=True,
    multi_label=True,
    seed=0,
    threads=1,
)


def invent(d):
    "A hundred rows on ten folds; the runs are made up, their files are as training leaves them."
    ds = simulate_dataset(d / 'colonies', 1000, workers=2)
    save_split(ds, labeled=0.1, test=0.1, valid=0.0, folds=10)
    for k in range(100):
        own = (
            dict(method='supervised', balance=False)
            if k == 0
            else dict(scales='224,112')
            if k == 1
            else dict(lambda_u=float(k))
        )
        for fold in range(10):
            oracle_run(
                d / 'runs' / f'row{k}-fold{fold}',
                ds,
                'Supervised' if k == 0 else 'IPB',
                CONFIG | own | dict(fold=fold),
                epochs=200,
            )


def seconds(f, *args):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        f(*args)
    return time.perf_counter() - start


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as d:
        invent(d := Path(d))
        read = seconds(lambda: [(r.history, r.predictions, r.balance) for r in find_runs(d / 'runs')[0]])
        took = seconds(ipb_report, d / 'runs')
        show(
            'report.seconds',
            took,
            's',
            f'1,000 runs of 200 epochs in 100 rows, with all tables and figures as files; reading all their '
            f'tables alone takes {read:.0f} s',
            60,
        )
        show(
            'report.size',
            (d / 'runs' / 'report.html').stat().st_size / 1e6,
            'MB',
            'report.html of these',
            20,
            better='lower',
        )
