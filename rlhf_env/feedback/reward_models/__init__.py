"""Reward models: learned from judgements, calibrated, examined."""
