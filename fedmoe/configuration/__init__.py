"""From words to a checked configuration: what stands behind `fedmoe.config`."""
