"""The relay client: one connection to one relay, and what chooses among several."""
