"""Prefills shared by equal requests, their queue and their streams."""
