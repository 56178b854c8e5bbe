"""Agents x tasks x seeds under equal conditions, and what the results allow one to say."""
