"""Replicas of one service: the tag of each, and calls that are passed on to the right one."""
