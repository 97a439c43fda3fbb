"""Settings of the unit tests."""

from hypothesis import settings

# A busy machine is no counterexample.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
