"The demo from start to report: seconds, and the macro recall of every row's student."

import tempfile
import time
from pathlib import Path

from figures import show

from ipb_nb.core import read_json
from ipb_nb.demo import demo

with tempfile.TemporaryDirectory() as d:
    start = time.time()
    demo(Path(d) / 'demo')
    show('demo.seconds', round(time.time() - start), 's', 'the limit of six minutes after set-up', 360)
    for run in ('ipb', 'mpl', 'supervised'):
        m, info = (read_json(Path(d) / 'demo' / run / f'{f}.json') for f in ('metrics', 'run'))
        show(
            f'demo.estimate.{run}',
            info['seconds'] / info['estimate']['seconds'],
            'x',
            'the seconds that were said at the start; 1 is right',
        )
        for net in [n for n in m if isinstance(m[n], dict)]:
            show(
                f'demo.macro_tpr.{run}.{net}',
                round(m[net]['macro_tpr'], 3),
                'recall',
                'the other rows of this run',
                0.7 if (run, net) == ('ipb', 'student') else None,
            )
