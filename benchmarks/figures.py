"The line that every benchmark prints for a figure."

import json
import os
import platform


def show(figure, value, unit, against, target=None, better=None):
    "`better` is lower for seconds and bytes and higher for the rest, unless stated."
    better = better or ('lower' if unit in ('s', 'ms', 'GB') else 'higher')
    print(
        json.dumps(
            dict(
                figure=figure,
                value=round(value, 4),
                unit=unit,
                target=target,
                better=better,
                against=against,
                machine=f'{os.cpu_count()} cores, {platform.machine()}, CPU',
            )
        ),
        flush=True,
    )
