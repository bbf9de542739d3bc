"""Other simulators, each in an environment of its own; none of this imports fedmoe."""
