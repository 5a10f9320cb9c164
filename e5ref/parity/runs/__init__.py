"""What an implementation computed, and what rounding costs there."""
