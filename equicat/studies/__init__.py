"""Whole experiments from one command."""
