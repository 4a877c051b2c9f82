"""Turns a trial into a plan, using registry and catalogue, or refuses it and says why. No torch."""
