"""Where a run departs from the reference, by how much, and why."""
