"""What a connection carries: streams and application datagrams."""
