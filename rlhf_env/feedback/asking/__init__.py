"""Whom to ask about what, and what the answers are worth."""
