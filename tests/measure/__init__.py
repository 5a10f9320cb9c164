"""Scripts that measure what docs/ says; no tests."""
