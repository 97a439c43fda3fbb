"""Other projects' caches beside askonce: one server, one run, each in an environment of its own: ``make bench-peers``."""
