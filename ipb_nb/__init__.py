import os
import warnings

__version__ = "0.2.0"

# fastai 2.8 calls torch.jit.script when it is imported
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')

# before torch is imported: what Apple's GPUs lack is done on the CPU
os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')
