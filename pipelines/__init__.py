"""Beam pipelines: replay a data set into logs, join the logs, learn from them, publish parameters.

One ``python -m pipelines.NAME`` per job: ``replay`` writes the two logs, ``train`` joins and learns.
"""

from schemas.kernel_cache import use_kernel_cache

use_kernel_cache()
