"""What a process needs before it starts; `doctor` looks at the same with the same words."""
