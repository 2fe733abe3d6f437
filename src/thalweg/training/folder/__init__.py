"""What a run leaves behind: its folder, checkpoints, trackers, and the way back out of them."""
