"""How far a learned reward can be climbed before the true one falls."""
