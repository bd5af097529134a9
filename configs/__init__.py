"""Configs: common.py lists every knob, each other file is one recipe."""
