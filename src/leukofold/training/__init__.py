"""Training one fold: losses, checkpoints, trackers and the loop."""
