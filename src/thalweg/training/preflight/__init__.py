"""What can be known before a run: its cost, and whether its numbers can be trusted."""
