"""The preference store."""
