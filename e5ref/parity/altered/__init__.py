"""The reference with one thing changed: its arithmetic, or a known mistake."""
