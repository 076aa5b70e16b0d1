"""Which parts of a surgery matter: Tables 9 to 11 of the paper, and what it leaves open."""
