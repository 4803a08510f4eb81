"The line that every benchmark prints for a figure."

import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import ipb_nb  # noqa: F401  (before torch: see there)
import torch


@cache
def machine():
    "The card with its driver, or the processor."
    if not torch.cuda.is_available():
        return f'{os.cpu_count()} cores, {platform.machine()}, CPU'
    asked = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    card = torch.cuda.get_device_name()
    return f'{card}, driver {driver}, torch {torch.__version__}, {os.cpu_count()} cores'


def peak_gb():
    "The most memory that this process has had. (`ru_maxrss` begins with its parent's.)"
    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1e6


def show(figure, value, unit, against, target=None, better=None):
    "`better` is lower for seconds and bytes and higher for the rest, unless stated."
    value, better = float(value), better or ('lower' if unit in ('s', 'ms', 'GB') else 'higher')
    print(
        json.dumps(
            dict(
                figure=figure,
                value=round(value, 4) if abs(value) >= 1 else float(f'{value:.4g}'),  # (4 decimals or 4 digits)
                unit=unit,
                target=target,
                better=better,
                against=against,
                machine=machine(),
            )
        ),
        flush=True,
    )
