"""How fast this project is, and what it is measured by: `speed`, `startup` and `scale`."""
