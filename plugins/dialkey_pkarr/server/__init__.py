"""The discovery server: signed packets over HTTP, and what they say over DNS."""
