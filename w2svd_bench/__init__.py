"""w2svd-bench: a benchmark for few-step distillation of video diffusion models."""

import os

# OpenMP's active spinning makes two threads slower than one on small machines; it is read when torch loads, so it
# is set here, before anything of ours imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
