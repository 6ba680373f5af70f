"""Models as folders of compiled libraries that run without this package, in C and in Python."""
