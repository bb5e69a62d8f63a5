"""The same examples at every run, and no deadline: machines that run tests are shared."""

from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")
