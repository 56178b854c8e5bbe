"""How each library's objectives are called: their functions and methods, with what those read and nothing else."""
