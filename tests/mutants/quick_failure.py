"""A plugin of pytest: a test that fails has done its work, so Hypothesis need not look for a smaller example."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile("mutants")
