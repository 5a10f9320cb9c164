"""How vectors were made, found from texts and vectors alone."""
