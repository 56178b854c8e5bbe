"""A board that others can enter: runs packed into one file, checked, run again, and ranked."""
