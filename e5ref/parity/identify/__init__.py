"""Which operation a run really applied where it departs: computed from what went in, what came out, and the weights."""
