"""Other libraries' objectives, by their own code, against the exact gradient and the exact optimum."""
