"""What people see of a cache in a terminal."""
