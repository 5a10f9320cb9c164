"""Golden kits, which test ports to other languages."""
