"""The reference with one thing changed: other arithmetic, and known mistakes."""
