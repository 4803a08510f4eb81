"""Console scripts start as copies of one process that has imported everything: the seconds of each start are paid once.

The tests of the wheel, of `python -m ipb_nb` and of `python -c` start them as a user does."""

import atexit
import gc
import hashlib
import json
import multiprocessing.util
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import partialmethod, wraps
from inspect import signature
from multiprocessing import forkserver
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from unittest.mock import patch

BIN = Path(sys.executable).parent


def script_of(args):
    "The arguments from the script on, if this is one of ours or of those that start them; else none."
    args = [os.fsdecode(o) for o in args] if isinstance(args, (list, tuple)) else ['']
    if args[0] == sys.executable:  # python script.py, python -u script
        args = args[2:] if args[1:2] == ['-u'] else args[1:]
        if args and args[0].endswith('.py') and args[0] != __file__:
            return args
    script = Path(args[0] if args else '')
    return args if script.parent == BIN and script.name.startswith(('ipb-', 'nbdev_test', 'torchrun')) else []


class Popen(subprocess.Popen):
    "`subprocess.Popen`, but some commands are copies."

    def _execute_child(self, args, *more):  # (the order of CPython 3.11 and 3.12)
        _, preexec_fn, _, _, cwd, env, _, _, _, *pipes = more[:15]
        script = script_of(args)
        if not script or preexec_fn or not (os.environ if env is None else env).get('IPB_AHEAD'):
            return super()._execute_child(args, *more)
        files = [i if f == -1 else f for i, f in enumerate(pipes[k] for k in (0, 3, 5))]
        asked = dict(args=script, cwd=os.path.abspath(os.fsdecode(cwd or '.')))
        asked |= dict(env=dict(os.environ if env is None else env), session=more[-2])  # start_new_session
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(os.environ['IPB_AHEAD'])
        socket.send_fds(self._answers, [(json.dumps(asked) + '\n').encode()], files)
        self._lines = self._answers.makefile()
        self.pid, self._child_created = int(self._lines.readline()), True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, flags):
        if not hasattr(self, '_lines'):
            return super()._try_wait(flags)
        if flags & os.WNOHANG and not self._ended():
            return 0, 0
        return self.pid, int(self._lines.readline() or signal.SIGKILL)

    def _ended(self):
        with DefaultSelector() as s:
            s.register(self._answers, EVENT_READ)
            return bool(s.select(0))

    def _internal_poll(self, *args, **kwargs):
        if not hasattr(self, '_lines'):
            return super()._internal_poll(*args, **kwargs)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None and self._ended():
                    self._handle_exitstatus(self._try_wait(0)[1])
            finally:
                self._waitpid_lock.release()
        return self.returncode


def start():
    "Start the process that is copied (it imports with the first command); its socket's address is in the environment."
    folder = tempfile.mkdtemp(prefix='ipb-ahead-')
    env = os.environ | dict(OMP_NUM_THREADS='1')  # (a process with threads cannot be copied)
    p = subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    p.stdout.readline()
    os.environ['IPB_AHEAD'] = f'{folder}/socket'
    return p


def import_all():
    import timm  # noqa: F401
    from execnb.shell import CaptureShell
    from ipykernel import kernelapp  # noqa: F401
    from nbdev import test  # noqa: F401

    import ipb_nb.commands

    for name in ipb_nb.commands.COMMANDS:
        ipb_nb.commands.find_command(name)
    CaptureShell.__init__ = partialmethod(CaptureShell.__init__, mpl_format='png')  # (half the default resolution)
    gc.collect()
    gc.freeze()  # (what is here is not looked at, and so not copied, when a copy collects garbage)
    assert threading.active_count() == 1 and len(os.listdir('/proc/self/task')) == 1


def share_simulations():
    "What several notebooks simulate with the same arguments is simulated once, and copied."
    from filelock import FileLock

    from ipb_nb import simulate

    kept = Path(os.environ['IPB_AHEAD']).parent / 'simulated'
    kept.mkdir(exist_ok=True)

    def shared(f, opened):
        @wraps(f)
        def simulated(dest, *args, **kwargs):
            given = signature(f).bind(dest, *args, **kwargs)
            given.apply_defaults()
            own = sorted((k, v) for k, v in given.arguments.items() if k not in ('dest', 'workers', 'overwrite'))
            made = kept / hashlib.sha256(repr((f.__name__, own)).encode()).hexdigest()
            if Path(dest).exists():
                return f(dest, *args, **kwargs)
            with FileLock(f'{made}.lock'):
                if not made.exists():
                    f(part := f'{made}.part', *args, **kwargs)
                    os.rename(part, made)
            shutil.copytree(made, dest)
            return opened(dest)

        return simulated

    simulate.simulate_experiment = shared(simulate.simulate_experiment, simulate.Experiment)
    simulate.simulate_dataset = shared(simulate.simulate_dataset, simulate.ColonyDataset)


def become(asked, files):
    "Be the command: its standard streams, folder, environment and arguments."
    for k, f in enumerate(files):
        os.dup2(f, k)
        os.close(f)
    if asked['session']:
        os.setsid()
    os.chdir(asked['cwd'])
    os.environ.clear()
    os.environ.update(asked['env'])
    sys.argv[:] = asked['args']
    more = [p for p in asked['env'].get('PYTHONPATH', '').split(os.pathsep) if p and p not in sys.path]
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *more]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    subprocess.Popen = Popen
    if sys.argv[0].endswith('nbdev_test'):
        share_simulations()
    if not sys.argv[0].endswith(('-inspect', '-annotate')):
        with patch.object(multiprocessing.util, 'spawnv_passfds', fork):
            forkserver.ensure_running()


def fork(path, args, keep):
    "Become Python's own fork server, which has imported everything then, too."
    if pid := os.fork():
        return pid
    for f in {*map(int, os.listdir('/proc/self/fd'))} - {0, 1, 2, *keep}:
        with suppress(OSError):
            os.close(f)
    try:
        exec(args[-1], {})
    finally:
        os._exit(0)


def serve(folder):
    "Copy this process for each command that is asked for; come back in the copies, and never here."
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # (Ctrl-C in a terminal is for the commands)
    door, ready, imported = socket.socket(socket.AF_UNIX), DefaultSelector(), False
    door.bind(f'{folder}/socket')
    door.listen()
    ready.register(door, EVENT_READ)
    ready.register(0, EVENT_READ)  # (at its end the tests are over)
    print('ready', flush=True)
    while True:
        for key, _ in ready.select():
            if key.fileobj == 0:
                door.close()
                os.unlink(f'{folder}/socket')
                shutil.rmtree(folder)
                os._exit(0)
            elif key.fileobj is door:
                answers, _ = door.accept()
                text, files, *_ = socket.recv_fds(answers, 1 << 20, 3)
                while not text.endswith(b'\n'):
                    text += answers.recv(1 << 20)
                if not imported:
                    import_all()
                    imported = True
                pid = os.fork()
                if not pid:
                    others = [k for k in ready.get_map().values() if k.fd]
                    ready.close()
                    for k in others:
                        os.close(k.fd)
                    return become(json.loads(text), files)
                for f in files:
                    os.close(f)
                with suppress(BrokenPipeError):
                    answers.sendall(f'{pid}\n'.encode())
                ready.register(os.pidfd_open(pid), EVENT_READ, (pid, answers))
            else:
                pid, answers = key.data
                ready.unregister(key.fd)
                os.close(key.fd)
                with answers, suppress(BrokenPipeError):
                    answers.sendall(f'{os.waitpid(pid, 0)[1]}\n'.encode())


def run():
    "Run the script; its exit code."
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
            return 1
        return e.code or 0
    return 0


if __name__ == '__main__':
    serve(sys.argv[1])  # (comes back in a copy)
    code = run()
    # the end of an interpreter, but for taking its objects apart: that touches, and so copies, all its memory
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
