"The library calls nothing that only one kind of machine has, outside of a branch that asks which machine it is."

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {'fcntl', 'termios', 'pwd', 'grp', 'resource', 'pty', 'msvcrt', 'winreg', '_winapi'}
OF_OS = set(
    'chown chroot confstr copy_file_range ctermid eventfd fchdir fchmod fchown fdatasync fork forkpty fpathconf '
    'fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid getuid '
    'getxattr initgroups killpg lchown listxattr lockf major makedev memfd_create minor mkfifo mknod nice openpty '
    'pathconf pidfd_open pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev '
    'readv register_at_fork removexattr sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid '
    'setgid setgroups setpgid setpriority setsid setuid setxattr splice startfile statvfs sync sysconf tcgetpgrp '
    'ttyname uname wait wait3 wait4 waitid writev'.split()
)
SIGNALS = {'SIGINT', 'SIGTERM', 'SIG_IGN', 'SIG_DFL'}  # everywhere
TEXTS = ('/tmp', '/dev/', '/proc/', '/bin/', '/usr/', '/etc/', '/var/', 'ipc:')
WORDS = {'fork', 'forkserver', 'ipc'}  # start methods and transports that Windows lacks
ASKS = ('sys.platform', 'os.name', 'platform.system', 'hasattr(', '_can_be_copied', 'starts_afresh')
GUARDED = {('kernel', '_become_kernel')}  # (the main function of a copy that only `kernel_ahead` makes, on Linux)


def special(node):
    "What a node calls that not every machine has, or nothing."
    if isinstance(node, ast.Import):
        return next((a.name for a in node.names if a.name.partition('.')[0] in MODULES), '')
    if isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] in MODULES:
        return node.module
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        name, of = node.attr, node.value.id
        if (of == 'os' and name in OF_OS) or (of == 'signal' and name.startswith('SIG') and name not in SIGNALS):
            return f'{of}.{name}'
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value.startswith(TEXTS) or node.value in WORDS:
            return repr(node.value)
    return ''


def asks(node):
    "Does the branch, or the test that ends the function early, ask for the machine?"
    return isinstance(node, (ast.If, ast.IfExp)) and any(a in ast.unparse(node.test) for a in ASKS)


def leaves(node):
    return isinstance(node, ast.If) and isinstance(node.body[-1], (ast.Return, ast.Raise))


def unguarded(source, module=''):
    "Lines with special calls that no branch guards."
    found = []

    def walk(node, safe):
        if (name := special(node)) and not safe:
            found.append(f'{module}:{node.lineno}: {name}')
        if isinstance(node, ast.FunctionDef):
            safe = safe or (module, node.name) in GUARDED
        if isinstance(node, ast.Try):
            caught = ' '.join(ast.unparse(h.type) for h in node.handlers if h.type)
            safe = safe or 'AttributeError' in caught or 'ImportError' in caught
        safe = safe or asks(node)
        for _, value in ast.iter_fields(node):
            after = safe
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child, after)
                    after = after or (asks(child) and leaves(child))

    walk(ast.parse(source), False)
    return found


@pytest.mark.parametrize(
    'source, lines',
    [
        ('import fcntl', 1),
        ('import os\nos.fork()', 1),
        ('os.pread(f, 1, 0)', 1),
        ('import signal\nos.kill(pid, signal.SIGKILL)', 1),
        ("open('/tmp/x')", 1),
        ("get_context('fork')", 1),
        ("if sys.platform == 'linux':\n    os.fork()", 0),
        ("def f():\n    if os.name == 'nt':\n        return 1\n    return 'ipc'", 0),
        ("def f():\n    if size > 3:\n        return 1\n    return 'ipc'", 1),
        ('try:\n    import fcntl\nexcept ImportError:\n    fcntl = None', 0),
        ("os.getloadavg() if hasattr(os, 'getloadavg') else None", 0),
        ('signal.signal(signal.SIGINT, stop)', 0),
    ],
)
def test_the_check_finds_what_it_should(source, lines):
    assert len(unguarded(source)) == lines


def test_no_call_is_of_one_platform_alone():
    found = [line for p in sorted((ROOT / 'ipb_nb').glob('*.py')) for line in unguarded(p.read_text('utf-8'), p.stem)]
    assert not found
