"""The table of bad inputs, a module for each part of what people give."""
