"""The paths that carry a connection, and what is known of each."""
