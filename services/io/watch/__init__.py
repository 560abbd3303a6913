"""Tells what changes in a tree, and says so when it cannot know."""
