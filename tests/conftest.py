"""Settings of all property tests."""

from hypothesis import settings

# The first example of many compiles kernels, and a loaded machine takes its time with any.
settings.register_profile("freshet", deadline=None, print_blob=True)
settings.load_profile("freshet")
