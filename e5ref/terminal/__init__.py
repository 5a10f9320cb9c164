"""What a terminal shows, and how it stops a command."""
