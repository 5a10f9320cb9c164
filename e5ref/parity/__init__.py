"""The judge: record a run of any implementation, and say where it departs from the reference."""
