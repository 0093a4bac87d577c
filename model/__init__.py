"""The model: feature ids, the collisionless embedding table, DeepFM, the trainer, deltas, snapshots, export.

NumPy, Numba and TensorFlow; no Beam, no I/O beyond files.
"""

from schemas.kernel_cache import use_kernel_cache

use_kernel_cache()
