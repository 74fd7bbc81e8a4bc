"""Over what a connection is carried: its paths, and what is known of each."""
