"""Where learned rewards come from: preferences, who gives them, and the model fitted to them."""
