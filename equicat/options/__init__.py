"""Options: the types that say what they may be, and how they are read from the command line and from YAML."""
