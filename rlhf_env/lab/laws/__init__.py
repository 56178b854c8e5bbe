"""Claims of papers, decided: each module states one, says what it takes to decide it, and measures it."""
