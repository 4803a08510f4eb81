"A disk that is as full as a test wants it."

import os
import subprocess

import pytest


def _run(*args):
    try:
        p = subprocess.run(args, capture_output=True, text=True)
    except OSError as e:
        return f'{e}'
    return p.stderr.strip() if p.returncode else ''


class Disk:
    "A disk in the memory; a test that needs it is skipped where none can be mounted (by root alone, on Linux)."

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir()
        if error := _run('mount', '-t', 'tmpfs', '-o', 'size=1g', 'tmpfs', self.folder):
            self.folder.rmdir()
            pytest.skip(f'no disk can be mounted: {error}')
        return self

    def __exit__(self, *args):
        subprocess.run(['umount', '-l', self.folder], check=True)

    def leave(self, room):
        "Leave so many bytes."
        s = os.statvfs(self.folder)
        size = (s.f_blocks - s.f_bfree) * s.f_frsize + room // s.f_frsize * s.f_frsize
        subprocess.run(['mount', '-o', f'remount,size={size}', self.folder], check=True)
