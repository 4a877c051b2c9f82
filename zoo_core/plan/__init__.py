"""Turns a trial, with registry and catalogue, into a plan, or refuses it with the reason. No torch."""
