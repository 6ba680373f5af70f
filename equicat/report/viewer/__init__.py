"""Structures that can be turned on a page that opens offline."""
