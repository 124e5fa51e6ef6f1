"""Settings shared by all tests."""

import os

from hypothesis import settings

# Property tests look at this many examples; soak runs ask for more (EDGEKIT_TEST_SCALE=10).
SCALE = int(os.environ.get("EDGEKIT_TEST_SCALE", "1"))
settings.register_profile("edgekit", max_examples=100 * SCALE, deadline=None, print_blob=True)
settings.load_profile("edgekit")
