"""vqfast against what people use otherwise: ``python -m benchmarks``; see README.md beside this file."""

import os

# torch, faiss and scikit-learn each bring an OpenMP; its idle threads would spin while others are timed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
