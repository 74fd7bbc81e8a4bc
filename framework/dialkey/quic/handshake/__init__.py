"""From the first datagram to the keys of 1-RTT."""
