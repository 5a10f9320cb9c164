"""What a port to another language is tested on."""
