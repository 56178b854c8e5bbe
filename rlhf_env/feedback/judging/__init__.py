"""A language model as a judge: what it is asked, how its words are read, and what it has answered before."""
