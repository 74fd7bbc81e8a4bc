"""The relay: endpoints that cannot reach each other directly talk through it."""
