"""What our local pages share: their server, their look, and a function that makes elements."""
