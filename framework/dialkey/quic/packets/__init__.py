"""1-RTT packets: their protection, how they are built and read."""
