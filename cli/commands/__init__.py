"""The commands of `fimbria`, one module for each group; imported when they are called."""
