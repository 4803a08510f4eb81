import os
import warnings

__version__ = "0.2.0"

# fastai 2.8 calls torch.jit.script when it is imported
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')

# before torch is imported: what Apple's GPUs lack is done on the CPU
os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')

# before torch is imported: threads that wait for others soon sleep. GNU's OpenMP would let them spin 300,000 times, and
# keep a core from the thread they wait for where another program is busy, too (benchmarks/busy.py)
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
