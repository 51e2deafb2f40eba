"""What all tests share: PyTensor's mode, and how many examples Hypothesis tries."""

import pytensor
import pytest
from hypothesis import HealthCheck, settings

from tests import COMPILER

# One example compiles several functions: few examples, and no deadline for the first of them.
# The same examples in every run, so that a change of the code is what makes a test fail; the
# other profile is for looking around: pytest --hypothesis-profile=many
_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=12, derandomize=True, **_COMMON)
settings.register_profile("many", max_examples=300, **_COMMON)
settings.load_profile("few")


@pytest.fixture(autouse=True)
def mode(request):
    """PyTensor's mode: FAST_COMPILE, as compiling is most of what the tests do.

    A test that is to run in others says so with ``tests.helpers.in_modes``.
    """
    name = getattr(request, "param", "FAST_COMPILE")
    compiler = {"cxx": COMPILER} if name == "CVM" else {}
    with pytensor.config.change_flags(mode=name, **compiler):
        yield name
